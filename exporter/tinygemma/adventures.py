"""The second half of the plots: mostly adventures; the notation is that of `plots.py`."""

from __future__ import annotations

__all__ = ["ADVENTURES"]

ADVENTURES = """
= that a good friend comes when you are sick
- {friend} was sick and could not come out to play.
/ {hero} heard that {friend} was sick in bed.
- {hero} felt sad for {fhim}.
/ "What can I do?" asked {hero}.
- {He} took some warm {food} to {fhis} house.
/ {He} brought a {adj} book and read a story.
/ {He} drew a picture of a {colour} {animal}.
- "Thank you for coming," said {friend} in a quiet voice.
/ {friend} smiled for the first time that day.
- The next day, {friend} was better.
/ After [two|three|four] days, {friend} could play again.
- "You are a good friend," said {friend}.
/ They ran outside and played with the {thing}.
= that a map is only a beginning
- {hero} found an old map with a {colour} cross on it.
/ A bottle came up to the shore. Inside was a map of {place2}.
/ The {job} gave {hero} a map. "I am too old to look for it," said the {job}.
- "A treasure!" said {friend}. They packed {food} and {item1}.
/ They had to walk {n} steps to the north and {n2} steps to the west.
- The first thing they found was {item2}.
/ They dug next to {sight}, but there was only a {animal}. "{sound}!" it said.
- They dug and dug until the spade hit something hard.
/ "Dig here!" said {friend}, and {hero} dug.
- In the chest lay {item3} and a note: "{secret}."
/ The chest was full of {colour} stones, as {colour} as {simile}.
/ The treasure was a box of old letters from a {job}.
= to knock before going in
- In the middle of {place} stood a door. Only a door, with no house.
/ Behind {sight}, {hero} found a tiny {colour} door.
- {hero} said, "{secret}," and it opened.
/ {hero} knocked {n} times, and it opened.
/ "Do not go in," said the {animal}. But {hero} went in.
- On the other side it was {season2}, and everything was {colour2}.
/ On the other side was a room where a {job} was asleep.
- A {job} with {tool} asked, "Who are you?"
/ "Nobody has come here for {n} hundred years," said a voice.
- "I am {hero}," said {hero}, "and I like to {game}."
/ {hero} said nothing and ran.
- When {he} came back, only {n} minutes had gone by.
/ When {he} looked back, the door was gone.
= that giants are only big people
- The ground shook. Boom! Boom! A giant came over {place2}.
/ Everyone ran away, because a giant was sitting in {place}.
- The giant was crying because he had lost his {thing}.
/ The giant had a thorn in his foot, as long as {item1}.
- "{hero} is not afraid," said {friend}. "{hero} will help."
/ {hero} climbed onto {item2} to be as tall as his knee.
- "What do you need?" {he} shouted as loudly as {he} could.
/ "Please do not step on the {animal}," said {hero}.
- "{Food}," said the giant. "I need {n} bags of {food}."
/ "Somebody to {game} with," said the giant quietly.
- So the {job} brought it, and the giant was {feeling}.
/ They played until {hour}, and nothing was broken except {item3}.
= that letters find a way
- A letter came for {hero}. "Dear {hero}, please come to {place2}. Your friend, {extra}."
/ {hero} wrote a letter: "Dear {extra}, how are you? I like to {game}. Love, {hero}."
- The postman had tired feet, so {hero} carried the bag.
/ It had a stamp with a {animal} on it.
- There was a letter for the {job}, one for {friend} and one for a {animal}.
/ {He} read it {n} times and put it under {his} pillow.
- "Who is {extra}?" asked {his} {elder}.
/ "{extra} must live far away," said {friend}.
- {extra} was a {job} who {work}.
/ {extra} was a {trait2} {animal} that lived {lair}.
- They wrote to each other for {n} years.
/ "Dear {hero}," it said, "thank you for the {food}. Love, {extra}."
= that a show needs everyone
- The circus came to {place}. There was {item1} on every ticket.
/ {hero} and {friend} wanted to put on a show.
- The {job} was to be the clown, and the {animal} was to jump through a hoop.
/ {friend} would {game2}, and {hero} would {game}.
- But the {animal} only {moves}.
/ But on the day of the show, {friend} lost {fhis} voice.
- "What now?" asked {friend}. {N} people were waiting.
/ {hero} peeked through the curtain. {His} knees were soft.
- Then {his} {elder} came on stage. {His} {elder} {habit}, and now everybody knew.
/ Then the {animal} said "{sound}!" and everybody laughed.
- They bowed {n} times.
/ The {job} threw flowers, {colour} as {simile}.
= to look at the stars more often
- {friend} built a rocket out of {item1} and {item2}.
/ "Let's fly to the moon," said {friend}.
- {count}, and up they went!
/ They closed the door, and the engine went {sound}, {sound}.
- From above, {place} was as small as a {thing}.
/ They flew past {n} stars and one sleepy planet.
- On the moon lived a {job} with {tool}.
/ The moon was full of {sight} and {sight2}. It was strange.
- "Have some {food}, {taste}," said the moon people.
/ {hero} left {item3} there, so that somebody would find it.
- They came home at {hour}, with dust on their boots.
/ Nobody believed them except the {animal}.
= that quiet people know a lot
- The king had lost his {thing}. "Who finds it may ask for anything," said the king.
/ Somebody was taking {food} from the kitchen every night.
- {hero} looked for tracks. They were the tracks of a {animal}.
/ "I will find out," said {hero}, and put on a {colour} hat.
- First {he} asked the {job}, who {work}. "It was not me."
/ First {he} asked {friend}. "I was at {place2}," said {friend}.
- Then {he} asked {extra}. "I only saw {sight}," said {extra}.
/ {He} hid behind {sight} and waited until {hour}.
- At last {he} looked {lair}. There was the {thing}!
/ It was the {animal}! It {moves} and gave everything back.
- "How did you know?" asked the king. "I listened," said {hero}.
/ "Case closed," said {hero}, and ate the {food}.
= that the sea gives and takes
- {hero} went out in a boat with a {job}.
/ A whale swam into the harbor. It was as big as {place2}.
- The waves were as high as houses. The {job} held on to {tool}.
/ The wind blew them far away from {home_the}.
- "Land!" shouted {friend}. It was an island with {sight}.
/ "Can you swim?" asked a fish. "Blub," said {hero}.
- They ate {food} and slept on {sight2}.
/ {hero} built a raft out of {item1}, {item2} and {item3}.
- After {n} days, a ship came. Its captain was {extra}.
/ The whale carried them home on its back.
- {hero} kissed the ground and then {his} {elder}.
/ The {job} said, "You are a real sailor now, {hero}."
= that nobody is too small
- A {animal} and a {animal2} were having a fight. "{sound}!" said one. "{sound2}!" said the other.
/ The {animal} wanted to live {lair2}, but the {animal2} was already there.
- "A {animal} lives {lair}," said {hero}, "and a {animal2} lives {lair2}."
/ "You eat {meal}, and you eat {meal2}," said {hero}. "Why do you fight?"
- The {animal} {moves}. The {animal2} {moves2}.
/ They looked at each other for a long time.
- {friend} gave {meal} to the {animal} and {meal2} to the {animal2}.
/ {hero} drew a line on the ground with a {thing}.
- "{sound}," said the {animal} softly. It meant thank you.
/ From then on, they only fought on {day}.
= that tomorrow is another day
- On {day}, everything went wrong. {hero} fell over a {thing}.
/ {hero} got up on the wrong side of the bed on {day}.
- On {day2}, it was even worse. The {dish} burned and the {animal} ran away.
/ {His} socks were wet, {his} {dish} was cold, and {friend} was at {place2}.
- "I will never {game} again," said {hero}.
/ "Go away," said {hero} to the {animal}. It {moves} and went.
- {His} {elder} gave {him} {food} and said nothing at all.
/ {friend} came and told a joke about a {job} and a {animal2}.
- {hero} laughed so hard that {he} forgot why {he} was angry.
/ The next day was {day3}, and the sun came out.
"""
