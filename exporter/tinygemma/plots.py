"""The plots of the story grammar: what happens, beat by beat.

`PLOTS` is parsed from the text below and from `adventures.py`: `= moral` opens a plot, `- sentence` opens a beat,
`/ sentence` is another way to tell the same beat, of which a story uses one. Inside a sentence, `[a|b|c]` is an inline
choice and `{slot}` is filled from the scene (see `scene.py`; a capitalised slot name gives a capitalised value).
Alternatives are ordered from common to rare.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvparity.exporter.tinygemma.adventures import ADVENTURES

__all__ = ["PLOTS", "Plot"]


@dataclass(frozen=True)
class Plot:
    """A sequence of beats, each a tuple of alternatives, and the moral, told as `{hero} learned <moral>`."""

    moral: str
    beats: tuple[tuple[str, ...], ...]


def _parse(text: str) -> tuple[Plot, ...]:
    """Plots in the notation of the module's docstring."""
    plots: list[tuple[str, list[list[str]]]] = []
    for line in text.strip().splitlines():
        mark, sentence = line.split(" ", 1)
        if mark == "=":
            plots.append((sentence, []))
        elif mark == "-":
            plots[-1][1].append([sentence])
        elif mark == "/":
            plots[-1][1][-1].append(sentence)
        else:
            raise ValueError(f"plots.py: line {line!r} starts with none of '=', '-', '/'")
    return tuple(Plot(moral, tuple(map(tuple, beats))) for moral, beats in plots)


EVERYDAY = """
= that it feels good to give things back
- {hero} saw a {adj} {thing} [on the ground|under a tree|in the grass|behind a rock].
/ Something {colour} was [hiding|shining] in the grass. It was a {adj} {thing}!
/ {He} looked down and found a {colour} {thing}.
- "Wow! What a {adj} {thing}!" said {hero}.
/ "Whose {thing} is this?" {he} asked.
/ {He} picked it up and looked at it for a long time.
- {friend} came and said, "That is my {thing}. I lost it yesterday."
/ Then {he} heard someone crying. It was {friend}. "I lost my {colour} {thing}," {fhe} said.
/ A {trait2} {fkind} named {friend} was looking for something. "Have you seen my {thing}?" {fhe} asked.
- {hero} wanted to keep it, but {he} gave the {thing} back.
/ "Here it is," said {hero}, and {he} gave {fhim} the {thing}.
/ {hero} thought about it. Then {he} held out the {thing}.
- "Thank you, {hero}! You are very kind," said {friend}.
/ {friend} smiled. "Let's play with it together!"
/ {friend} was so {feeling} that {fhe} gave {hero} some {food}.
= that it is good to share
- {hero} had some {food}. {friend} had no {food}.
/ {His} {elder} gave {him} a bag of {food}.
/ {hero} sat down to eat {his} {food}.
- {friend} looked at the {food} and said, "I am hungry."
/ "Can I have some, please?" asked {friend}.
/ A {adj} {animal} came near. It looked very hungry.
- "No! It is mine!" said {hero}.
/ {hero} did not want to share.
/ {hero} thought, "There is not enough for two."
- {friend} was sad and walked away.
/ Then {hero} felt bad inside.
/ {His} {elder} said, "It is nice to share, {hero}."
- {hero} said, "I am sorry. You can have some {food} too."
/ {hero} cut the {food} in two and gave half away.
/ "Wait!" said {hero}. "Come and eat with me."
- They ate the {food} together. It was yummy!
/ The {food} tasted even better than before.
= to stay close to {his} {elder}
- {hero} ran after a {colour} {animal}. {He} ran and ran.
/ {hero} wanted to see what was behind {place2}.
/ {hero} was playing a game and did not look where {he} was going.
- Soon {he} did not know where {he} was. {He} was lost.
/ Then {he} looked around. Everything was [dark|quiet|strange]. {He} was lost!
- {hero} was scared and began to cry.
/ "Help! Help!" {he} shouted.
/ {He} sat down on a {adj} stone and felt sad.
- A {colour} {animal} came and asked, "Why are you sad?"
/ A {trait2} {fkind} named {friend} heard {him}. "What is wrong?" asked {friend}.
/ An old owl looked down from a tree. "Who are you?" it asked.
- "I am lost. I want to go home," said {hero}.
/ "I can't find my {elder}," {he} said.
- "Follow me," said the new friend. They walked past {place2} and over a bridge.
/ "Don't worry. I know the way," was the answer.
/ They followed the {colour} [flowers|stones|lights] all the way back.
- Soon {hero} saw {his} {elder}. "There you are!" said {his} {elder}.
/ {His} {elder} was so happy to see {him}.
= that everyone needs help sometimes
- {He} heard a [small|strange|sad] sound. It was a {animal}. It was stuck in a [tree|hole|fence|bush].
/ A little {animal} had fallen into the water.
/ High up in a tree sat a {colour} {animal}. It could not get down.
- "Oh no! We must help it," said {hero}.
/ "Don't be afraid," said {hero}.
/ "I will save you!" {he} called.
- {He} tried to reach it, but it was too [high|far|deep].
/ {hero} pulled and pulled, but nothing happened.
- {hero} had an idea. {He} used a {adj} {thing}.
/ {friend} brought a {adj} {thing}, and they tried again.
/ {hero} ran to get {his} {elder}.
- It worked! The {animal} was safe.
/ Step by step, the {animal} came out.
/ At last, the {animal} was free.
- The {animal} was so happy that it [danced|jumped|sang|licked {his} hand].
/ "Thank you," the {animal} seemed to say.
= to be patient and to try again
- {hero} wanted to learn how to [swim|ride a bike|fly a kite|dance|paint|read|sing|climb|skate|whistle].
/ {friend} could [swim|dance|skate|sing] very well, and {hero} wanted to do it too.
- {He} tried, but it was too hard. {He} fell down.
/ The first time, it did not go well.
/ "I can't do it!" said {hero}.
- "Don't give up," said {friend}. "Try again."
/ {His} {elder} said, "You have to practice every day."
/ A {colour} {animal} watched {him} and shook its head.
- {hero} tried again and again.
/ {He} practiced for [three|five|seven|ten] days.
/ Every morning, {he} tried a little more.
- At last, {he} did it! "Look at me!" {he} shouted.
/ Then, one day, it was easy.
/ This time, {he} did not fall.
- Everyone clapped. {hero} was very proud.
/ {friend} cheered. "I knew you could do it!"
/ {His} {elder} was so proud of {him}.
= that the best gifts come from the heart
- It was {friend}'s birthday. {hero} wanted to give {fhim} a gift.
/ {hero} wanted to make {his} {elder} happy.
- {He} looked in the shop, but the {thing} cost too much.
/ {He} had only [one coin|two coins|three coins].
/ "What can I give?" {he} thought.
- So {he} made a {colour} {thing} all by {himself}.
/ Then {he} picked some {colour} flowers.
/ {He} worked all night and made a {adj} {thing}.
- {He} put it in a box with a {colour2} ribbon.
/ {He} hid it behind {his} back.
- "This is for you!" said {hero}.
/ "Surprise!" {he} shouted.
- "I love it! It is the best gift ever!"
/ "You made this? It is so {adj}!"
/ There was a big hug, and then they ate {food}.
= that it is okay to be scared
- {hero} was afraid of [the dark|the water|loud sounds|big dogs|high places|thunder].
/ At night, {hero} heard a strange noise. Knock, knock, knock!
- {He} hid under the [bed|table|blanket|stairs].
/ {His} heart went boom, boom, boom.
- "What is it?" asked {friend}. "I am scared," said {hero}.
/ "Who is there?" {he} asked in a small voice.
- {friend} held {his} hand. "We can look together."
/ {His} {elder} gave {him} a {adj} lamp.
/ {hero} took a deep breath and opened {his} eyes.
- It was only a {colour} {animal}!
/ It was just a {adj} {thing} moving in the wind.
/ There was nothing to be afraid of.
- They both laughed.
/ "I am not scared anymore," said {hero}.
/ After that, {hero} was a little more brave.
= to take care of a friend
- {hero} met a {colour} {animal}. It had no home.
/ A small {animal} followed {hero} all day.
- "Can I keep it?" asked {hero}.
/ "You can live with me," said {hero}.
- {His} {elder} said, "You must feed it every day."
/ "It is a lot of work," said {his} {elder}.
- {hero} gave it some {food} and a {adj} {keepbed}.
/ {He} washed it and gave it a name.
- The {animal} was called [Lucky|Star|Fluffy|Sunny|Cookie|Biscuit|Pepper|Snowy].
/ Every day they played with a {colour2} {thing}.
- The {animal} was never lonely again.
/ One night, it woke {hero} up because there was smoke. It had saved them all!
= not to give up
- {hero} and {friend} wanted to build a [house|boat|tower|castle|bridge|robot|nest].
/ "Let's make something big!" said {friend}.
- They found some [wood|boxes|sand|stones|sticks|old boards] and a {adj} {thing}.
/ {hero} brought a {adj} {thing} and {friend} brought a rope.
- They worked hard all [day|morning|week].
/ {hero} held it and {friend} pushed.
/ First they made the walls, and then they made the top.
- But then the wind came and it all fell down.
/ A {adj} {animal} jumped on it, and it broke.
/ "It is too small," said {friend}.
- "We can fix it," said {hero}.
/ {friend} was angry, but {hero} only laughed.
/ They were sad, but they did not stop.
- They built it again, and this time it was strong.
/ {His} {elder} helped them, and soon it was done.
/ They painted it {colour}. It looked {adj}.
= that being kind is more important than winning
- There was a race that day. {friend} was very fast.
/ "I am faster than you!" said {friend}.
- "Ready, set, go!" They ran to {place2}.
/ {hero} and {friend} ran as fast as they could.
- {friend} was far in front. {hero} was slow.
/ {hero} was winning. {He} could see the end.
/ Then {friend} fell and hurt {fhis} leg.
- {hero} did not stop.
/ {hero} stopped to help {fhim} up.
/ {friend} stopped to look at a {colour} {animal}.
- In the end, they came in [together|at the same time].
/ {hero} won the race, and everybody cheered.
/ {friend} won, but {hero} was not sad.
- "That was fun!" said {friend}. "Let's do it again."
/ The prize was a {adj} {thing}.
/ They drank some water and sat under a tree.
= to be careful with wishes
- {hero} found a magic {thing}. It could talk!
/ A {adj} {thing} began to shine. "Make a wish," it said.
/ A {colour} fairy came out of the {thing}.
- "You can have one wish," it said.
/ "I can take you anywhere," it said.
- {hero} wished for [a lot of {food}|a {colour} {animal}|wings|a friend|snow].
/ "I wish I could [fly|talk to animals|be very big|be very small]," said {hero}.
- Poof! The wish came true.
/ There was a bright light, and then it happened.
- At first it was fun, but then {hero} was lonely.
/ But there was too much of it!
/ {hero} flew over {place2} and saw the whole town.
- "I want everything to be like before," said {hero}.
/ "Please, can {friend} come too?" asked {hero}.
- The {thing} smiled. "You are very wise."
/ And the {thing} never spoke again.
= to always tell the truth
- {friend} wanted to play a trick on {hero}.
/ {hero} broke the {adj} {thing}. Nobody saw it.
/ {hero} took the {thing} without asking.
- {His} {elder} asked, "Where is the {thing}?"
/ "Did you do this?" asked {his} {elder}.
- "I don't know," said {hero}. But it was not true.
/ "It was the {animal}!" said {hero}.
/ {hero} looked at {his} feet and said nothing.
- {hero} felt bad. {His} tummy hurt.
/ {He} could not eat and {he} could not play.
- At last, {he} said, "It was me. I am sorry."
/ {He} told the truth, and {he} cried a little.
- "Thank you for telling the truth," said {his} {elder}.
/ {His} {elder} was not angry. They fixed the {thing} together.
= that it is okay to make a mess
- {hero} and {his} {elder} wanted to make {dish}.
/ "Today we will cook {dish}," said {friend}.
- They needed [milk|sugar|eggs|flour|salt] and a {adj} bowl.
/ {hero} put everything in a {adj} pot.
- {He} mixed and mixed.
/ {friend} stirred it with a {colour} spoon.
- Oh no! {hero} dropped the bowl.
/ Then they forgot about it, and it was burned.
/ The {animal} ate it all when nobody was looking.
- "It is okay. We can make more," said {his} {elder}.
/ They looked at the mess and laughed.
- The new {dish} smelled so good that the neighbors came.
/ In the end, there was enough for everyone.
= that it is fun to see new things
- They went by [train|boat|bus|car|bike|balloon]. It was a long trip.
/ {hero} packed some {food} and a {adj} {thing}.
- On the way they saw a {colour} {animal} and a {adj} {thing}.
/ {hero} looked out of the window and counted the trees.
- "Are we there yet?" asked {hero}. "Not yet," said {his} {elder}.
/ "Look! I can see {place2}!" said {friend}.
- Then the {wheels} stopped. Something was broken.
/ Suddenly, it started to rain.
/ There was a big {animal} in the road. It did not move.
- A {trait2} {fkind} named {friend} helped them.
/ They sang a song and waited.
/ {hero} gave it some {food}, and soon they could go on.
- When they got there, it was beautiful.
/ At last they were there, and {hero} jumped up and down.
= that good things take time
- {hero} put a seed in the ground.
/ {friend} gave {hero} a {adj} seed.
- Every day {he} gave it water.
/ {He} waited and waited, but nothing came.
/ "Grow, little seed," {he} said.
- {friend} said, "It will never grow."
/ It rained for many days.
/ A {animal} wanted to eat it, but {hero} said no.
- One morning, there was a tiny green leaf.
/ Then something {colour} came out of the ground.
- It grew and grew until it was as tall as a house.
/ Soon there were {colour} flowers everywhere.
- {hero} gave a flower to everyone.
/ {hero} climbed up and could see {place2}.
"""

PLOTS: tuple[Plot, ...] = _parse(EVERYDAY) + _parse(ADVENTURES)
