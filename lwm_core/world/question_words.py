"""The ways in which people ask about pictures and clips; `{}` is a colour or a shape."""

from __future__ import annotations

WHAT_HAPPENS = (
    "What happens?",
    "What happens?",
    "What happens in the video?",
    "What happens in the clip?",
    "What happens in this video?",
    "What happens here?",
    "What is happening?",
    "What's happening?",
    "What is going on?",
    "What is happening in the video?",
    "Tell me what happens.",
    "What do you see happening?",
    "What is moving?",
)
DESCRIBE_CLIP = (
    "Describe the clip.",
    "Describe the video.",
    "Describe this video.",
    "Describe what you see.",
    "Describe what happens.",
    "What does the video show?",
)
DESCRIBE_PICTURE = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this picture.",
    "Describe it.",
    "Describe what you see.",
    "Give a caption.",
)
WHAT_IS_THERE_PICTURE = (
    "What is in the picture?",
    "What is in the picture?",
    "What is in the image?",
    "What's in the picture?",
    "What is this?",
    "What do you see?",
    "What can you see?",
    "What is shown?",
    "What is there?",
    "What is on the picture?",
    "What does the picture show?",
)
WHAT_IS_THERE_CLIP = (
    "What is in the video?",
    "What is in the clip?",
    "What's in the video?",
    "What is in the picture?",
    "What do you see?",
    "What can you see?",
    "What is there?",
    "What is shown?",
)
COLOUR_OF_IT = (
    "What colour is it?",
    "Which colour is it?",
    "What colour is the shape?",
    "Which colour is the shape?",
    "Which colour?",
    "What is its colour?",
    "What colour does it have?",
    "What is the colour of the shape?",
)
SHAPE_OF_IT = (
    "What shape is it?",
    "Which shape is it?",
    "Which shape is in the picture?",
    "What shape is there?",
    "Which shape?",
    "What is its shape?",
    "What is the shape?",
    "Which shape do you see?",
)
HOW_MANY = (
    "How many shapes are there?",
    "How many shapes?",
    "How many shapes do you see?",
    "How many shapes are in the picture?",
    "How many things are there?",
    "How many objects are there?",
    "Count the shapes.",
)
BACKGROUND = (
    "What is in the background?",
    "What colour is the background?",
    "Which colour is the background?",
    "What is the background?",
    "What is the colour of the background?",
    "What is behind it?",
    "What does the background look like?",
    "Which colour is the ground?",
)
WAY_OF_IT = (
    "Which way does it move?",
    "Which way is it moving?",
    "Which way does it go?",
    "Which direction does it move?",
    "In which direction does it move?",
    "What direction does it move in?",
    "Where does it move?",
    "Where does it go?",
    "How does it move?",
    "What does it do?",
    "Which way does the shape move?",
    "Does it move?",
)
PLACE_OF = (
    "Where is {}?",
    "Where is {} in the picture?",
    "In which part of the picture is {}?",
    "Where do you see {}?",
)
FIRST_PLACE_OF = (
    "Where is {} at first?",
    "Where does {} start?",
    "Where does {} begin?",
    "Where is {} at the beginning?",
)
LAST_PLACE_OF = (
    "Where is {} at last?",
    "Where does {} end?",
    "Where does {} arrive?",
    "Where is {} at the end?",
)
COLOURS_OF_THEM = ("What colours are they?", "Which colours do the shapes have?")
COLOUR_OF = (
    "What colour is the {}?",
    "Which colour is the {}?",
    "What is the colour of the {}?",
    "Which colour has the {}?",
)
SHAPES_OF_THEM = ("Which shapes are there?", "What shapes do you see?")
SHAPE_OF = ("What shape is the {} one?", "Which shape is {}?", "What is {}?")
WAY_OF = (
    "Which way does the {} move?",
    "What does the {} do?",
    "What happens to the {}?",
    "Where does the {} go?",
    "Which direction does the {} move in?",
)
