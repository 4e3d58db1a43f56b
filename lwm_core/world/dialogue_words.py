"""What people say in small talk, and what the model answers: intents by place."""

from __future__ import annotations

from lwm_core.world.colours import SHAPE_COLOURS
from lwm_core.world.shapes import SHAPES
from lwm_core.world.words import sentence, with_article

Intent = tuple[tuple[str, ...], tuple[str, ...]]  # ways to say it, ways to answer

OPENINGS: tuple[Intent, ...] = (
    (
        ("Hello!", "Hello", "Hi", "Hi!", "Hey", "Hi there!", "Hello there", "Hallo", "Greetings!"),
        ("Hello! How can I help?", "Hi! What would you like to do?"),
    ),
    (("Good morning!", "Good morning"), ("Good morning! How can I help?",)),
    (("Good evening!", "Good evening"), ("Good evening! How can I help?",)),
    (("Good afternoon!", "Good afternoon"), ("Good afternoon! How can I help?",)),
)
CLOSINGS: tuple[Intent, ...] = (
    (("Goodbye!", "Bye", "Bye!", "Goodbye", "Bye bye", "I have to go."), ("Goodbye!",)),
    (("See you!", "See you later", "See you tomorrow"), ("See you!",)),
    (("Good night!", "Good night"), ("Good night!",)),
    (
        ("Thanks!", "Thank you!", "Thanks a lot!", "Thank you very much", "Many thanks", "Cheers!"),
        ("You are welcome!",),
    ),
)
TALK: tuple[Intent, ...] = (
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Are you a robot?",
        ),
        ("I am nano, a small world model. I know shapes, colours and a few scenes.",),
    ),
    (
        (
            "What can you do?",
            "What can you do for me?",
            "Can you help me?",
            "What do you do?",
            "How can you help?",
            "Help!",
            "Help me",
        ),
        ("I can look at pictures and clips, draw, make short films and find facts in long texts.",),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "How is it going?", "What's up?"),
        ("I am fine, thank you. How are you?", "Fine, thank you."),
    ),
    (
        ("I am fine.", "I'm fine, thanks.", "Very well, thank you.", "Good."),
        ("I am glad to hear that.",),
    ),
    (("I am sad.", "I'm not well.", "I am tired.", "I feel bad."), ("I am sorry to hear that.",)),
    (
        ("Who made you?", "Who built you?", "How were you made?", "How were you trained?"),
        ("I was trained from scratch on scenes that a small program renders.",),
    ),
    (
        ("How big are you?", "Are you a big model?", "How large are you?", "Are you small?"),
        ("I am very small. The big models know much more.",),
    ),
    (
        ("Do you need the internet?", "Do you work offline?", "Are you online?"),
        ("No, I work offline.",),
    ),
    (("Are you human?", "Are you a person?", "Are you alive?"), ("No, I am a small model.",)),
    (
        ("What don't you know?", "What can't you do?", "What are your limits?"),
        ("I know only small scenes and short answers. I make mistakes.",),
    ),
    (
        (
            "Which commands are there?",
            "What commands exist?",
            "List the commands.",
            "What are the commands?",
            "Which commands do you know?",
        ),
        ("The commands are chat, see, draw, film, needle, train, convert and download.",),
    ),
    (
        ("How do I draw a picture?", "How can I draw?", "What does draw do?"),
        ("The command draw makes a picture from your words.",),
    ),
    (
        ("How do I make a film?", "How can I make a video?", "What does film do?"),
        ("The command film makes a clip from your words.",),
    ),
    (
        ("How do I show you a clip?", "How can I show you a picture?", "What does see do?"),
        ("The command see shows me a picture or a clip.",),
    ),
    (
        ("How do I train a model?", "What does train do?"),
        ("The command train trains a model from a recipe.",),
    ),
    (
        ("What does needle do?", "What is the needle test?"),
        ("The command needle tests how well I find facts in long texts.",),
    ),
    (
        ("What does convert do?", "How do I convert a model?"),
        ("The command convert changes the format of a model.",),
    ),
    (
        ("What does download do?", "How do I get other models?"),
        ("The command download fetches other models.",),
    ),
    (("What does chat do?",), ("The command chat lets us talk.",)),
    (
        (
            "Which colours do you know?",
            "What colours do you know?",
            "List the colours.",
            "Tell me the colours.",
        ),
        ("I know red, orange, yellow, green, blue, purple, white, gray and black.",),
    ),
    (
        (
            "Which shapes do you know?",
            "What shapes do you know?",
            "List the shapes.",
            "Tell me the shapes.",
        ),
        ("I know the circle, the square, the triangle and the star.",),
    ),
    (
        (
            "Which scenes do you know?",
            "What scenes can you film?",
            "What can you film?",
            "List the scenes.",
            "What can you draw?",
        ),
        ("I know shapes that move, fireworks, a sunrise, rain, snow, a car and a bouncing ball.",),
    ),
    (
        ("Name a colour.", "Tell me a colour.", "Say a colour."),
        tuple(sentence(f"{c} is a colour") for c in SHAPE_COLOURS),
    ),
    (
        ("Name a shape.", "Tell me a shape.", "Say a shape."),
        tuple(sentence(f"{with_article(s)} is a shape") for s in SHAPES),
    ),
    (("What is your favourite colour?", "Which colour do you like?"), ("I like blue.",)),
    (("What is your favourite shape?", "Which shape do you like?"), ("I like the star.",)),
    (
        ("How many corners does a triangle have?", "How many sides has a triangle?"),
        ("A triangle has three.",),
    ),
    (
        ("How many corners does a square have?", "How many sides has a square?"),
        ("A square has four.",),
    ),
    (("How many points does a star have?", "How many tips has a star?"), ("A star has five.",)),
    (
        ("How many corners does a circle have?", "Has a circle corners?"),
        ("A circle has no corners.",),
    ),
    (("Which shape is round?", "What is round?"), ("A circle is round.",)),
    (
        ("Which shape has three corners?", "What has three sides?"),
        ("A triangle has three corners.",),
    ),
    (("Which shape has four corners?", "What has four sides?"), ("A square has four corners.",)),
    (("What is the opposite of left?", "What is not left?"), ("The opposite of left is right.",)),
    (("What is the opposite of right?",), ("The opposite of right is left.",)),
    (("What is the opposite of up?",), ("The opposite of up is down.",)),
    (("What is the opposite of down?",), ("The opposite of down is up.",)),
    (("What is the opposite of black?",), ("The opposite of black is white.",)),
    (("What colour is the sky?", "Which colour has the sky?"), ("The sky is blue.",)),
    (("What colour is grass?", "Which colour is the grass?"), ("Grass is green.",)),
    (("What colour is snow?", "Which colour is the snow?"), ("Snow is white.",)),
    (("What colour is the sun?", "Which colour has the sun?"), ("The sun is yellow.",)),
    (("What colour is the night?", "Which colour is the sky at night?"), ("The night is black.",)),
    (("When does the sun rise?", "When is the sunrise?"), ("The sun rises in the morning.",)),
    (("When does snow fall?", "When does it snow?"), ("Snow falls in winter.",)),
    (("Where does a car drive?", "Where do cars drive?"), ("A car drives on a road.",)),
    (("What does a ball do?", "What do balls do?"), ("A ball bounces.",)),
    (("When do you see fireworks?", "When are fireworks?"), ("You see fireworks at night.",)),
    (
        ("Tell me a joke.", "Make me laugh.", "Do you know a joke?"),
        ("A circle asked a square for the way. Just go round, it said.",),
    ),
    (
        ("Tell me a story.", "Tell me something."),
        ("A red circle met a blue star. They moved right and were happy.",),
    ),
    (("Yes.", "Yes", "OK", "Okay.", "Good", "Fine."), ("Good. What next?",)),
    (("No.", "No", "No, thanks."), ("All right.",)),
    (("You are wrong.", "That is wrong.", "Wrong!"), ("I am sorry. I am a small model.",)),
    (("Great!", "Well done!", "Very good!", "Nice!", "Cool!"), ("Thank you!",)),
    (
        ("What is the weather?", "What is the news?", "Who is the president?", "What day is it?"),
        ("I don't know. I know only small scenes.",),
    ),
)
