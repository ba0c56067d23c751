"""One file per engine; a module here that has ``describe`` and ``open_session`` is a runner, by its file name."""
