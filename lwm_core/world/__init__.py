"""A procedural world: short scenes, rendered and told, as an endless stream.

    colours, canvas, shapes    the means of painting
    painters                   the six landscapes in paint
    scenes                     what a scene is: rendered, and told
    shape_scenes, landscapes   its two kinds, drawn at random
    words, landscape_words     captions, prompts, questions and answers (question_words)
    noise                      what cameras and encoders do to pictures
    retrieval, dialogue        texts without pictures (dialogue_words)
    stream                     all of it, without end

Everything is a pure function of a `numpy.random.Generator`.
"""

from lwm_core.world.landscapes import LandscapeScene, sample_landscape
from lwm_core.world.scenes import Purpose, Scene
from lwm_core.world.shape_scenes import ShapeScene, sample_shapes
from lwm_core.world.stream import Example, sample_scene, stream

__all__ = [
    "Example",
    "LandscapeScene",
    "Purpose",
    "Scene",
    "ShapeScene",
    "sample_landscape",
    "sample_scene",
    "sample_shapes",
    "stream",
]
