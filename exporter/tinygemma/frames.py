"""How stories begin, move on and end; the notation is that of `plots.py`.

The openings tell facts (name, home, keepsake) that the closings of long stories ask for again.
"""

from __future__ import annotations

__all__ = ["CLOSINGS", "KEEPSAKE", "LINKS", "LONG_CLOSINGS", "OPENINGS", "SETTINGS"]

OPENINGS: tuple[str, ...] = (
    "Once upon a time, there was a {trait} {kind} named {hero}. {He} lived in {home} with {his} {elder}.",
    "Once upon a time, in {home}, there lived a {trait} {kind} [named|called] {hero}.",
    "Once there was a {trait} {kind} named {hero}. {hero} lived in {home} and was [always|often|never] {feeling}.",
    "{hero} was a {trait} {kind} who lived in {home}.",
    "There was once a {trait} {kind} named {hero}. Everyone in {place} knew {him}.",
    "Long ago, a {trait} {kind} named {hero} lived in {home} near {place}.",
    "Once upon a time, a {kind} named {hero} woke up early. {He} was very {feeling}.",
    "In {home} lived a {kind}. {His} name was {hero}, and {he} was the most {trait} {kind} of all.",
    "One [day|morning|summer|winter], a {trait} {kind} named {hero} wanted to [see the world|learn "
    "something new|have fun].",
)

KEEPSAKE: tuple[str, ...] = (
    "{He} had a {kcolour} {keepsake} that {he} loved very much.",
    "{hero} had a {kcolour} {keepsake}. {He} took it everywhere.",
    "{His} {elder} had given {him} a {kcolour} {keepsake}, and it was {his} favorite thing.",
    "More than anything, {he} loved {his} {kcolour} {keepsake}.",
    "{hero} never went out without {his} {kcolour} {keepsake}.",
)

SETTINGS: tuple[str, ...] = (
    "One day, {hero} went to {place}. {weather}",
    "One [morning|afternoon|evening], {hero} and {his} {elder} went to {place}.",
    "One day, {hero} went to {place} with {his} friend {friend}.",
    "{weather} {hero} wanted to go to {place}.",
    'One day, {his} {elder} said, "Let\'s go to {place}!" {hero} was very {feeling}.',
    "It was [Monday|Saturday|Sunday|the first day of spring|a holiday], so {hero} walked to {place}.",
    "{hero} liked to play at {place} with {friend}. {weather}",
)

LINKS: tuple[str, ...] = (
    "The next day, {hero} went to {place}. {weather}",
    "A week later, {hero} and {friend} met at {place}.",
    "After that, {hero} walked on until {he} came to {place}.",
    "The next morning, {he} took {his} {kcolour} {keepsake} and went to {place}.",
    "But the day was not over. {hero} went to {place} to see {friend}.",
    "Some days later, {hero} put on {his} boots and ran to {place}.",
    "On the way home, {hero} stopped at {place}.",
    "When the {season} came, {hero} went to {place} again.",
)

CLOSINGS: tuple[str, ...] = (
    "{hero} and {friend} were very happy. They played together all day.",
    "From that day on, {hero} and {friend} were best friends.",
    "{hero} went home and told {his} {elder} all about it. {His} {elder} smiled and gave {him} a big hug.",
    "They all laughed and ate {food} together. The end.",
    "{hero} was {feeling}. It had been the best day ever.",
    "That night, {hero} fell asleep with a smile on {his} face.",
    "And they lived happily ever after.",
    "{hero} waved goodbye and walked home to {his} {elder}.",
)

LONG_CLOSINGS: tuple[str, ...] = (
    "At last, {hero} went back to {home_the}. {He} put the {kcolour} {keepsake} next to {his} bed and fell asleep.",
    'That night, {hero} held {his} {kcolour} {keepsake} and told {his} {elder} about everything. "What a '
    'day!" said {his} {elder}.',
    'When {he} was back in {home_the}, {his} {elder} asked, "Do you still have your {kcolour} '
    '{keepsake}?" "Yes," said {hero}. "I always will."',
    "And so the {trait} {kind} named {hero} came home to {home_the}, with the {kcolour} {keepsake} safe "
    "in {his} arms. The end.",
    "{hero} was tired but {feeling}. {He} hugged {his} {kcolour} {keepsake} and closed {his} eyes. The end.",
)
