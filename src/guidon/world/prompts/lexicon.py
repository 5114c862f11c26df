"""Words that people use in prompts, beyond the words of captions: what they mean in the world, or are near to.

A model that was trained on captions knows the words of ``captions.vocabulary()`` and no others. Words in ``ALSO`` are
replaced by those. Words in ``FILLER`` are dropped. Words in the ``NEAR`` tables have no equal in the world: a message
names the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Attribute = Literal["shape", "colour", "motion", "background", "size", "speed"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NEGATIONS = frozenset(
    _words("""not no without never neither nor none nothing except excluding avoid cannot cant dont doesnt isnt non""")
)
NUMBERS = frozenset(
    _words(
        """zero two three four five six seven eight nine ten eleven twelve twenty thirty hundred thousand dozen
    dozens couple pair pairs both several many multiple few lots numerous some all various every each trio duo
    hundreds thousands second third another other others group crowd row swarm bunch"""
    )
)  # "second" and "another" begin a second object
UNITS = frozenset(
    _words(
        """seconds second secs sec s minutes minute frames frame fps px pixels pixel k d p x hz times percent degrees"""
    )
)
SEQUENCES = frozenset(_words("then afterwards afterward later until finally eventually after"))
PLACES = frozenset(_words("top bottom centre center middle corner corners edge edges leftmost rightmost upper lower"))

# how people name the parts of a sentence: dropped, because the caption says nothing less without them
FILLER = frozenset(
    _words(
        """please draw show shows showing make makes generate create render animate animated give me i want would
    like let us lets clip gif animation movie film footage image picture depicting display displaying scene
    featuring containing single only just simply simple basic very really quite so extremely super smoothly
    steadily steady constantly continuously straight constant always be been being was were will has have
    having had coloured colored color colour colours colors shaped sized solid plain uniform flat clean empty
    blank entire whole screen camera viewer as at by for from its his her their my your our these those who
    where when can you could should hi hello ok photo photograph drawing painting illustration sketch view
    shot close closeup animations videos smooth smoothly motion movement direction way speed pace side frame
    sign 2d also while here now"""
    )
)
THINGS = frozenset(_words("object objects shape shapes thing things figure figures form item items something"))
"""Nouns that name no shape."""

# word of the world -> what people also say; read as that word
ALSO: dict[str, tuple[str, ...]] = {
    "circle": ("sphere", "orb", "circular", "round"), "square": ("cube",), "triangle": ("triangular",),
    "red": ("reddish",), "green": ("greenish",), "blue": ("bluish",), "yellow": ("yellowish",),
    "small": ("mini", "miniature", "microscopic", "smaller", "smallest"),
    "large": ("giant", "gigantic", "enormous", "massive", "colossal", "larger", "largest", "bigger", "biggest"),
    "slowly": ("slower", "leisurely", "calmly", "lazily", "gradually"),
    "quickly": ("faster", "swiftly", "swift", "speedily", "rapid", "quicker", "hurriedly", "briskly"),
    "still": ("static", "immobile", "frozen", "unmoving", "fixed"),
    "stays still": ("sits", "sit", "sitting", "waits", "wait", "waiting"),
    "background": ("bg", "wall", "canvas", "backgrounds", "backdrops", "wallpaper"), "diagonally": ("diagonal",),
    "a": ("one",), "the": ("this",), "is": ("are",),
    "does": ("do", "did"), "that": ("who",), "on": ("onto", "upon", "atop"), "over": ("across",),
}  # fmt: skip
VERBS = _words(
    """fly run roll walk drive sail swim crawl travel wander shift head drift slide glide float go move proceed
    pass march stroll progress scroll flow race rush come zoom dash creep advance"""
)
"""Verbs that are read as "moves"; the direction is said elsewhere."""
FALLS = {"moves down": ("fall", "drop", "sink", "descend"), "moves up": ("rise", "climb", "ascend", "lift")}
"""Verbs that hold a direction."""
IRREGULAR = {
    "fly": "flies flew flown", "run": "ran running", "go": "went gone", "swim": "swam swimming",
    "drive": "drove driven", "fall": "fell fallen", "drop": "dropped dropping", "sink": "sank", "rise": "rose risen",
    "travel": "travelled", "slide": "slid", "creep": "crept", "come": "came", "rush": "rushes", "pass": "passes",
    "march": "marches", "dash": "dashes", "spin": "spinning spun", "stop": "stops stopped stopping",
    "hop": "hopped hopping", "shake": "shook", "swing": "swung", "jump": "jumped", "grow": "grew", "shrink": "shrank",
    "sit": "sat", "flip": "flipped flipping", "bounce": "bouncy", "disappear": "vanish vanishes", "turn": "turns",
    "begin": "began beginning", "get": "getting",
}  # fmt: skip

# no equal in the world -> the nearest of its words, best first
NEAR_SHAPES: dict[str, tuple[str, ...]] = {
    "square": _words(
        """rectangle rectangular oblong quadrilateral diamond rhombus parallelogram trapezoid trapeze rhomboid brick
    tile building house book window door card package container"""
    ),
    "circle": _words(
        """oval ellipse elliptical ring donut doughnut torus wheel sun moon planet coin button egg apple football
    basketball balloon bubble marble pearl puck earth globe clock plate pizza hexagon octagon"""
    ),
    "triangle": _words("""cone pyramid arrow arrowhead tent mountain roof spike"""),
    "cross": _words("""star x crucifix t asterisk snowflake"""),
    "": _words(
        """heart pentagon polygon semicircle crescent spiral line curve cylinder prism pill kite tear teardrop leaf
    flower cloud lightning blob letter arc
    cat dog horse cow pig sheep lion tiger bear elephant monkey mouse rabbit fish shark whale duck frog snake bee ant
    insect spider dragon unicorn animal kitten puppy bird butterfly fox panda penguin turtle dinosaur
    person man woman boy girl child baby people human astronaut dancer player hand face eye character robot ghost
    car truck bus train van ship boat rocket spaceship plane airplane aeroplane aircraft ufo sword
    tree lighthouse castle tv table bell"""
    ),
}
"""No nearest word is better than one that would show something else. So only outlines are near to shapes."""
NEAR_COLOURS: dict[str, tuple[str, ...]] = {
    "pink": ("purple", "red"), "orange": ("red", "yellow", "brown"), "navy": ("blue", "black"),
    "azure": ("blue", "cyan"), "indigo": ("purple", "blue"), "lilac": ("purple", "white"),
    "lavender": ("purple", "white"), "mauve": ("purple",), "plum": ("purple",), "fuchsia": ("purple", "red"),
    "rose": ("red", "purple"), "maroon": ("red", "brown"), "burgundy": ("red", "brown"), "ruby": ("red",),
    "cherry": ("red",), "coral": ("red", "yellow"), "salmon": ("red",), "lime": ("green", "yellow"),
    "emerald": ("green",), "olive": ("green", "brown"), "mint": ("green", "cyan"), "jade": ("green",),
    "aqua": ("cyan", "blue"), "aquamarine": ("cyan", "green"), "gold": ("yellow", "brown"),
    "golden": ("yellow", "brown"), "lemon": ("yellow",), "amber": ("yellow", "red", "brown"),
    "ochre": ("yellow", "brown"), "beige": ("yellow", "white", "brown"), "cream": ("yellow", "white"),
    "ivory": ("yellow", "white"), "silver": ("gray", "white"), "charcoal": ("black", "gray"), "steel": ("gray",),
    "slate": ("gray",), "taupe": ("gray", "brown"), "khaki": ("brown",), "mustard": ("yellow",),
    "rust": ("red", "brown"), "wine": ("red",),
    "tan": ("yellow", "brown"), "bronze": ("yellow", "brown"), "copper": ("red", "brown"),
    "chocolate": ("red", "brown"), "sapphire": ("blue",), "ultramarine": ("blue",), "cobalt": ("blue",),
    "rainbow": (), "multicolored": (), "multicoloured": (), "colorful": (), "colourful": (),
    "transparent": (), "translucent": (), "invisible": (), "glass": (), "chrome": (), "peach": ("red", "yellow"),
    "striped": (), "stripy": (), "dotted": (), "spotted": (), "checkered": (), "chequered": (), "patterned": (),
    "gradient": (), "multicolor": (), "multicolour": (),
}  # fmt: skip
OTHER_COLOURS: dict[str, tuple[str, ...]] = {"brown": ("red", "yellow"), "red": ("brown",)}
"""Colours of backgrounds that are near to colours of objects, and the other way round."""
NEAR_SIZES: dict[str, tuple[str, ...]] = {
    "medium": ("small", "large"), "average": ("small", "large"), "normal": ("small", "large"),
    "short": ("small",), "thin": ("small",),
    "narrow": ("small",), "tall": ("large",), "wide": ("large",), "long": ("large",), "fat": ("large",),
    "thick": ("large",),
}  # fmt: skip
NEAR_MOTIONS: dict[str, tuple[str, ...]] = {
    "north": ("up",), "northward": ("up",), "northwards": ("up",), "south": ("down",), "southward": ("down",),
    "southwards": ("down",), "east": ("right",), "eastward": ("right",), "eastwards": ("right",), "west": ("left",),
    "westward": ("left",), "westwards": ("left",), "northeast": ("up right",), "northwest": ("up left",),
    "southeast": ("down right",), "southwest": ("down left",), "sideways": ("left", "right"),
    "sideway": ("left", "right"), "horizontally": ("left", "right"), "horizontal": ("left", "right"),
    "vertically": ("up", "down"), "vertical": ("up", "down"), "forward": (), "forwards": (),
    "backward": (), "backwards": (), "ahead": (), "slows-down": (), "speeds-up": (),
    "around": (), "away": (), "in-a-circle": (), "randomly": (), "random": (),
    "everywhere": (), "anywhere": (), "closer": (), "zigzag": (), "zigzags": (), "zigzagging": (), "back": (),
    "forth": (), "clockwise": (), "counterclockwise": (),
}  # fmt: skip
MOTION_VERBS: dict[str, tuple[str, ...]] = {
    "jump": ("up",), "hop": ("up",), "leap": ("up",), "launch": ("up",), "crash": ("down",), "stop": ("still",),
    "pause": ("still",), "halt": ("still",), "hover": ("still",), "hang": ("still",), "idle": ("still",),
    "sleep": ("still",), "park": ("still",), "soar": ("up",), "dive": ("down",), "plunge": ("down",),
    "bounce": (), "spin": (),
    "rotate": (), "turn": (), "grow": (), "shrink": (), "fade": (), "explode": (), "dance": (), "shake": (),
    "vibrate": (), "wiggle": (), "swing": (), "orbit": (), "curve": (), "accelerate": (), "decelerate": (),
    "morph": (), "change": (), "blink": (), "flash": (), "pulse": (), "pulsate": (), "disappear": (), "appear": (),
    "flip": (), "tumble": ("down",), "oscillate": (), "return": (), "reverse": (), "collide": (), "split": (),
    "transform": (), "expand": (), "teleport": (), "wobble": (), "enter": (), "leave": (), "exit": (), "chase": (),
    "follow": (), "approach": (), "recede": (), "loop": (), "bend": (),
}  # fmt: skip
"""What no object of the world does."""
MODIFIERS = frozenset(
    _words(
        """dark light bright pale vivid deep neon pastel shiny glossy matte metallic glowing dull soft darker lighter"""
    )
)
"""Adjectives that stand before a colour, or before an unknown noun."""
SCENERY = frozenset(
    _words(
        """beach sea ocean sky sand grass snow desert forest park garden field lawn street road river lake water room
    floor ground table desk space city jungle hill night stage surface paper page kitchen meadow"""
    )
)
"""Places that are no plain background."""
PREPOSITIONS = frozenset(
    _words("""near under below above behind between through along inside within beside into beneath before""")
)

# phrases that a word-by-word reading would get wrong -> the same in words of captions
PHRASES: tuple[tuple[str, str], ...] = (
    (r"(from )?(the )?left( side| edge)? (over )?to (the )?right( side| edge)?", "to the right"),
    (r"(from )?(the )?right( side| edge)? (over )?to (the )?left( side| edge)?", "to the left"),
    (r"(from )?(the )?top( side| edge)? to (the )?bottom( side| edge)?", "down"),
    (r"(from )?(the )?bottom( side| edge)? to (the )?top( side| edge)?", "up"),
    (r"(in )?from (the )?left( side| edge)?", "to the right"),
    (r"(in )?from (the )?right( side| edge)?", "to the left"),
    (r"(in )?from (above|(the )?top)", "down"),
    (r"(in )?from (below|(the )?bottom)", "up"),
    (r"(pointing|facing|looking) (to the )?(left|right|up|down)(wards?)?", "pointing"),
    (r"upside down", "upside-down"),
    (r"to(ward|wards)? (the )?(upper|top) (left|right)( corner)?", r"up and to the \4"),
    (r"to(ward|wards)? (the )?(lower|bottom) (left|right)( corner)?", r"down and to the \4"),
    (r"to(ward|wards)? (the )?top", "up"),
    (r"to(ward|wards)? (the )?bottom", "down"),
    (r"(without|with no) (moving|movement|motion|any movement|any motion)", "is still"),
    (r"never (moves?|moving)", "does not move"),
    (r"at rest|in place", "still"),
    (r"(from )?side to side", "sideways"),
    (r"in (a circle|circles)", "in-a-circle"),
    (r"(slows|slowing|slowed) down", "slows-down"),
    (r"(speeds|speeding) up", "speeds-up"),
    (r"at (a )?(high|full|top) speed", "quickly"),
    (r"at (a )?low speed", "slowly"),
    (r"(middle|mid) sized?", "medium"),
)


SAID = {
    "in-a-circle": "in a circle",
    "upside-down": "upside down",
    "slows-down": "slows down",
    "speeds-up": "speeds up",
}
"""What the user wrote for a word that stands for a phrase."""


def forms(verb: str) -> tuple[str, ...]:
    """A verb and its inflections: "roll", "rolls", "rolling", "rolled"."""
    stem = verb.removesuffix("e")
    regular = (verb, f"{verb}s", f"{verb}es", f"{stem}ing", f"{stem}ed")
    return (*regular, *IRREGULAR.get(verb, "").split())


def plurals(noun: str) -> tuple[str, ...]:
    """The plurals of a noun, the right one and the one that a spelling rule would give."""
    return (f"{noun}s", f"{noun}es") if noun.endswith(("s", "x", "ss", "ch")) else (f"{noun}s",)


def meanings() -> dict[str, str]:
    """Every word of ``ALSO`` and of the verbs, and the words of captions that it is read as."""
    found = {word: meaning for meaning, words in ALSO.items() for word in words}
    found |= {form: "moves" for verb in VERBS for form in forms(verb)}
    return found | {form: meaning for meaning, verbs in FALLS.items() for verb in verbs for form in forms(verb)}


def nearest_meanings() -> dict[str, tuple[Attribute, tuple[str, ...]]]:
    """Every word without an equal in the world: which attribute it is of, and the nearest words, best first."""
    found: dict[str, tuple[Attribute, tuple[str, ...]]] = {}

    def add(attribute: Attribute, words: Iterable[str], near: tuple[str, ...]) -> None:
        found.update((word, (attribute, near)) for word in words)

    for shape, words in NEAR_SHAPES.items():
        for word in words:
            add("shape", (word, *plurals(word)), (shape,) if shape else ())
    of_attribute: dict[Attribute, dict[str, tuple[str, ...]]]
    of_attribute = {"colour": NEAR_COLOURS, "size": NEAR_SIZES, "motion": NEAR_MOTIONS}
    for attribute, table in of_attribute.items():
        for word, near in table.items():
            add(attribute, (word,), near)
    for verb, near in MOTION_VERBS.items():
        add("motion", forms(verb), near)
    return found
