"""Checkpoints in public formats.

`loading` finds a checkpoint and recognizes its format, `huggingface` reads and writes Hugging Face folders, `shards`
reads their index files, and
`weights` maps the tensors of safetensors files to the parameter tree by one table.
"""
