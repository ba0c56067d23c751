"""Sentences around the plots: asides, things told early and asked for again later, and songs.

The notation is that of `plots.py`. `ECHOES` are pairs: the first sentence comes near the beginning of an episode, the
second at its end, with the same numbers, lists and secret words: text that must be looked up, not known.
"""

from __future__ import annotations

__all__ = ["ASIDES", "ECHOES", "PORTRAITS", "SONGS"]

PORTRAITS: tuple[str, ...] = (
    "{hero} liked to {game}.",
    "{He} was so {trait} that {he} {deed}.",
    "{hero} loved to {game}, and {his} {elder} {habit}.",
    "{His} {elder} {habit}.",
    "Every {season2}, {hero} went out to {game}.",
    "People said that {hero} {deed}.",
    "Nobody liked to {game} more than {hero}.",
)

ASIDES: tuple[str, ...] = (
    "{hero} could see {sight} and {sight2}.",
    "{hero} saw {sight}.",
    'A {animal} was there too. "{sound}!" it said.',
    "A {animal} came by and {moves}.",
    '"{sound}!" said a {colour} {animal}.',
    "It was as {colour} as {simile}.",
    "{hero} looked at {sight} and smiled.",
    "They met a {job} with {tool}.",
    '{hero} ate some {food}. "Mmm," said {friend}, "{taste}!"',
    "{hero} counted the {things}. {count}! There were {n}.",
    "A {animal} lives {lair}, so {hero} looked there first.",
    '"Do you like to {game2}?" asked {friend}. "No, I like to {game}," said {hero}.',
    "The {job}, who {work}, waved at them.",
    "{friend} had a {thing2} and {use2}.",
    '"The {animal} is hungry," said {friend}. So they gave it {meal}.',
    "{hero} thought about {his} {elder}, who {habit}.",
    "For a moment, nobody said a word.",
    "{hero} took a deep breath.",
    'Somewhere far away, a {animal2} called, "{sound2}!"',
    "The {job} showed them {tool} and told them about {place2}.",
    '"I would like some {food}, {taste}," said {friend}.',
    '"I have never seen {sight2} before," said {friend}.',
    "{hero} was {feeling}, but also a little tired.",
    "Behind {sight} stood a {job} with {tool}.",
    '"What is that?" asked {friend}. "That is a {animal2}," said {hero}. "It lives {lair2}."',
    "It smelled of {food} and rain.",
    '"One day I will be a {job}," said {hero}.',
    "A cloud that looked like a {animal2} went over {place2}.",
    "The wind played with {sight2}.",
    "{hero} had {n} {things} and gave one to {friend}. Now {he} had {less}.",
    '"Shh," said {friend}. "Can you hear the {animal2}?" "{sound2}, {sound2}!" it went.',
    '"If I were a {animal2}, I would live {lair2}," said {hero}.',
)

ECHOES: tuple[tuple[str, str], ...] = (
    ("In {his} bag were {item1}, {item2} and {item3}.",
     "{hero} looked into {his} bag. {Item1}, {item2} and {item3} were still there."),
    ("\"Be home before {hour},\" said {his} {elder}.", "The clock struck {hour}, so {hero} ran home to {his} {elder}."),
    ("{friend} whispered a secret word: \"{secret}.\"", "\"{secret}!\" called {hero}, and {friend} laughed."),
    ("On the way {he} met a {job} named {extra}.", "{extra} the {job} came too, with {tool}."),
    ("A sign said, \"Do not wake the {animal2}.\"",
     "In the end, somebody woke the {animal2}. \"{sound2}!\" it said."),
    ("{hero} put {n} {things} into {his} pocket.",
     "When {hero} looked, there were still {n} {things} in {his} pocket."),
    ("First {he} had to buy {food}, {food2} and {dish} for {his} {elder}.",
     "Then {hero} gave {his} {elder} the {food}, the {food2} and the {dish}."),
    ("\"Remember,\" said {his} {elder}, \"the magic words are {secret} and {secret2}.\"",
     "{hero} said the magic words, \"{secret} and {secret2}.\""),
    ("{He} walked past {place3}, then past {place2}.", "{He} walked back past {place2}, then past {place3}."),
    ("{hero} was looking for a {adj2} {colour2} {thing2}.",
     "And there it was, the {adj2} {colour2} {thing2}! {hero} {use2}."),
)  # fmt: skip

SONGS: tuple[str, ...] = (
    '"The sun is up, the moon is down, we dance together through the town!"',
    '"Row, row, over the sea, bring a little fish for me!"',
    '"One for you and two for me, three for the bird in the apple tree!"',
    '"Rain, rain, tap on the door, come and play with us once more!"',
    '"Little star, so far away, will you be there another day?"',
    '"Hop like a rabbit, jump like a frog, roll like a puppy, sit on a log!"',
    '"Over the hill and under the bridge, somebody lives on the top of the ridge!"',
    '"Stir the soup and bake the bread, then it is time to go to bed!"',
    '"Wind in the sails and salt in the air, the island is waiting and we will be there!"',
    '"Snow on the roof and snow on the tree, snow on my nose and snow on my knee!"',
    '"My boots are wet, my hat is too, but I am never sad with you!"',
    '"Tick says the clock and tock says the mouse, everyone sleeps in the little old house!"',
    '"Seven green apples fell into a well, who took them out again nobody can tell!"',
    '"A fox in a box and a hen with a pen, wrote a long letter to nobody then!"',
    '"Lanterns are burning on land and on sea, guide all the sailors back homeward to me!"',
    '"Grow, little seed, in the dark and the deep, wake when the winter has finished its sleep!"',
)
