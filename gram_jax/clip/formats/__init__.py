"""Checkpoints in public formats.

`loading` finds a checkpoint and recognizes its format, `huggingface` reads and writes Hugging Face folders, `shards`
reads their index files, and `weights` maps the tensors of safetensors files to the parameter tree by one table.
`torch_file` reads PyTorch's files without PyTorch: `zip_members` finds their parts, `unpickle` reads pickles without
executing them, and `torch_globals` knows tensors and nothing else.
"""
