"""Reading and writing checkpoints in public formats."""
