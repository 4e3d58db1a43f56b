"""Foreign weight formats, read as data: nothing in a file is ever executed."""
