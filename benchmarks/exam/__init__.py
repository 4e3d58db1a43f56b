"""An examiner of the embedded model that shares nothing with the world it was trained on.

Its clips are drawn by Pillow and encoded as H.264, its measurer reads colour and outline from
pixels, and it touches the project only through the public interface (`lwm_core` or the command
`lwm`). Run it as `python -m benchmarks.exam`.
"""
