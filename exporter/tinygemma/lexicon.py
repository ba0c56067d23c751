"""The words of the story grammar: who, where, what and how.

Every list is ordered from common to rare: the grammar draws the first entries more often than the last ones, so that
greedy decoding has clear favourites while sampling still reaches everything.
"""

from __future__ import annotations

__all__ = [
    "ADJECTIVES",
    "ANIMALS",
    "BOYS",
    "COLOURS",
    "COUNTABLES",
    "CREATURES",
    "DAYS",
    "DISHES",
    "FEELINGS",
    "FOODS",
    "GIRLS",
    "GROWN_UPS",
    "HOMES",
    "KEEPSAKES",
    "NUMBERS",
    "PLACES",
    "SYLLABLES",
    "THINGS",
    "TRAITS",
    "WEATHER",
]

GIRLS: tuple[str, ...] = tuple(
    """Lily Mia Sue Anna Lucy Ella Sara Amy Molly Rosie Emma Jane Kate Zoe Daisy Ruby Mary Bella Nina Polly Clara Ivy
    Maya Tina Holly Hazel Penny Nora Elsie Flora Grace Wendy Alice Olive Poppy June Freya Tess Luna Greta Ida Pearl
    Sofia Dora Leela Mei Amina Yara Noor Kiki""".split()
)

BOYS: tuple[str, ...] = tuple(
    """Tim Ben Tom Max Sam Jack Leo Finn Jake Billy Bob Joe Noah Oscar Peter Mark Adam Luke Danny Toby Henry Sid Ned
    Charlie Oliver Felix Hugo Kai Rory Theo Gus Ravi Omar Ali Jun Otto Milo Ezra Ivan Louis Nico Pablo Ollie Eddie Arlo
    Walt Bram Idris Jonah Kofi""".split()
)

CREATURES: tuple[tuple[str, str], ...] = (
    ("rabbit", "Hoppy"), ("bear", "Bruno"), ("mouse", "Pip"), ("fox", "Rusty"), ("duck", "Quacky"),
    ("kitten", "Mittens"), ("puppy", "Spot"), ("frog", "Freddy"), ("turtle", "Shelly"), ("owl", "Hoot"),
    ("pig", "Truffle"), ("goat", "Billie"), ("hedgehog", "Prickles"), ("squirrel", "Nutty"), ("penguin", "Waddle"),
    ("lamb", "Woolly"), ("dragon", "Ember"), ("snail", "Slow Joe"), ("bee", "Buzz"), ("otter", "Splash"),
    ("elephant", "Peanut"), ("monkey", "Coco"), ("donkey", "Clover"), ("robot", "Beep"),
)  # fmt: skip

ANIMALS: tuple[str, ...] = tuple(
    """dog cat bird rabbit duck squirrel frog butterfly horse mouse fox kitten puppy turtle cow fish bee owl sheep hen
    goat pig snail ladybug deer hedgehog pony goose crab crow""".split()
)

COLOURS: tuple[str, ...] = (
    "red", "blue", "yellow", "green", "pink", "purple", "orange", "brown", "white", "black", "golden", "silver",
)  # fmt: skip

TRAITS: tuple[str, ...] = tuple(
    """little happy curious kind brave clever shy cheerful gentle funny quiet silly sleepy busy lonely friendly careful
    tiny playful stubborn honest patient""".split()
)

ADJECTIVES: tuple[str, ...] = tuple(
    """big small shiny old pretty soft new round special tiny heavy warm strange beautiful little smooth long
    broken wooden bright fluffy magic dusty striped""".split()
)

FEELINGS: tuple[str, ...] = tuple("happy excited proud glad surprised calm thankful joyful pleased cheerful".split())

THINGS: tuple[str, ...] = tuple(
    """ball box kite hat boat book toy drum key stone car bell shell balloon cup leaf feather lamp basket map
    flower ring coin train puzzle whistle button ribbon bucket rope pencil wheel mirror doll clock ladder scarf
    spoon crayon bottle umbrella star marble jar flag horn sled bag""".split()
)

KEEPSAKES: tuple[str, ...] = tuple(
    """blanket scarf hat teddy kite backpack ball coat wagon bracelet doll whistle ribbon lantern bike cap
    umbrella drum pillow shell""".split()
)

PLACES: tuple[str, ...] = (
    "the park", "the forest", "the garden", "the beach", "the river", "the farm", "the woods", "the pond", "the market",
    "the hill", "the school", "the lake", "the playground", "the town", "the barn", "the meadow", "the library",
    "the big tree", "the shop", "the cave", "the bridge", "the castle", "the zoo", "the mountain", "the field",
    "the harbor", "the bakery", "the old mill", "the train station", "the orchard", "the island", "the tower",
)  # fmt: skip

HOMES: tuple[str, ...] = (
    "a small house", "a little town", "a cozy cottage", "a big city", "a village by the sea", "a house on a hill",
    "an old farm", "a house near the forest", "a tall red house", "a hut by the river", "a quiet valley",
    "a tree house", "a boat on the lake", "a house with a blue door", "a house full of books", "a tent in the meadow",
)  # fmt: skip

FOODS: tuple[str, ...] = (
    "cookies", "apples", "cake", "bread", "berries", "soup", "pancakes", "carrots", "ice cream", "pie", "cheese",
    "honey", "bananas", "nuts", "grapes", "rice", "corn", "muffins", "peaches", "jam", "eggs", "pears", "noodles",
    "plums",
)  # fmt: skip

DISHES: tuple[str, ...] = tuple("cookies cake soup pancakes bread pie muffins jam noodles dumplings".split())

COUNTABLES: tuple[str, ...] = tuple("stones shells buttons coins nuts feathers marbles beads seeds keys".split())

NUMBERS: tuple[str, ...] = tuple("one two three four five six seven eight nine ten".split())

DAYS: tuple[str, ...] = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())

SYLLABLES: tuple[str, ...] = tuple(
    "ba bo di du fa fo ga gi ka ki la lo lu ma mi mo na no pa pi ra ri ro sa si ta to tu va zi zo".split()
)

GROWN_UPS: tuple[str, ...] = (
    "mom", "dad", "grandma", "grandpa", "mommy", "daddy", "aunt", "uncle", "teacher", "neighbor",
)  # fmt: skip

WEATHER: tuple[str, ...] = (
    "The sun was shining and the sky was blue.", "It was a warm and sunny day.", "The birds were singing in the trees.",
    "It was a cold day and the wind was strong.", "It was raining outside.", "Snow was falling on the ground.",
    "The sky was gray and full of clouds.", "A soft wind moved the grass.", "The morning was quiet and bright.",
    "There was a rainbow in the sky.", "Leaves were falling from the trees.",
    "It was so hot that nobody wanted to run.", "The stars were still out.", "A thick fog covered everything.",
)  # fmt: skip
