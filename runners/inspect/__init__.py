"""What is in a bundle, which values lie inside its graphs, and what can be had here."""
