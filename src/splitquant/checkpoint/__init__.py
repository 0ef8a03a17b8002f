"""Safetensors folders: read in windows of rows, written shard by shard, complete or not at all."""
