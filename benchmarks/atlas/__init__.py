"""The atlas: other exporters' packages of small seeded models, judged; docs/atlas.md is written from it."""
