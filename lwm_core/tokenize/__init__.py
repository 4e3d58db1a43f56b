"""From media to tokens: pictures and clips become shards of JSON lines that models are trained on.

media.py     folders, files and tables → what is to be tokenized, and what is said of it
examples.py  a medium, its codes and its words → examples in the original's field notation
manifest.py  how a data set was made: of which image tokenizer, of which frames
folder.py    the data set on the disk: whole shards, one that grows, what failed
flow.py      all of it in one pass: decoded in threads, encoded in batches
"""

from lwm_core.tokenize.examples import TASKS, Task
from lwm_core.tokenize.flow import Tokenized, tokenize
from lwm_core.tokenize.manifest import MANIFEST, Manifest, read_manifest

__all__ = ["MANIFEST", "TASKS", "Manifest", "Task", "Tokenized", "read_manifest", "tokenize"]
