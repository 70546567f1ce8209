"""Checkpoints in public formats.

From a name or path to a `Clip`:

1. `loading` is `load_clip`: it resolves names, by `hub` (downloads) and `tags` (OpenCLIP's models and tags).
2. `recognition` chooses the format of a folder by its files (`FORMATS`), and of a single file by its tensors.
3. `huggingface` and `openclip` read configuration, tokenizer (`vocabulary`) and image transform. `source` states what a
   format is.
4. `weights` maps tensors to the parameter tree under one of `namings`: `table` states what a naming is, `vit` has those
   of the vision transformer. `tensors` reads them from any container, and `shards` reads index files.
5. `torch_file` reads PyTorch's files without PyTorch: `zip_members` finds their parts, `unpickle` reads pickles without
   executing them, and `torch_globals` knows tensors and nothing else.
"""
