"""What is true in the stories' world: which sound an animal makes, what there is to see at a place, and so on.

The stories use these facts consistently, so there is something to know beyond grammar. Rows are looked up by an entry
of a word list in `lexicon.py`; columns are named by the slots they fill.
"""

from __future__ import annotations

__all__ = [
    "ANIMAL_FACTS",
    "COLOUR_SIMILES",
    "ELDER_HABITS",
    "FOOD_TASTES",
    "GAMES",
    "JOBS",
    "SIGHTS",
    "THING_USES",
    "TRAIT_DEEDS",
]


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Rows `key: a / b / c` as a dictionary of tuples."""
    rows = (line.split(": ", 1) for line in text.strip().splitlines())
    return {key: tuple(cells.split(" / ")) for key, cells in rows}


ANIMAL_FACTS = _table(
    """
dog: Woof / in a kennel / a bone / wagged its tail
cat: Meow / on a warm roof / a fish / washed its face
bird: Tweet / in a nest / a seed / spread its wings
rabbit: Sniff / in a hole in the ground / a carrot / hopped in a circle
duck: Quack / by the water / some bread / shook its feathers
squirrel: Chit chat / in a hollow tree / a nut / ran up a branch
frog: Ribbit / on a lily pad / a fly / made a big jump
butterfly: Flutter / among the flowers / some nectar / opened its wings
horse: Neigh / in a stable / an apple / stamped its foot
mouse: Squeak / behind the wall / a crumb of cheese / ran under a chair
fox: Yip / in a den / some berries / hid behind a bush
kitten: Mew / in a basket / a bowl of milk / rolled on its back
puppy: Yap / on a soft rug / a biscuit / chased its tail
turtle: Hmm / in its shell / a green leaf / pulled in its head
cow: Moo / in the barn / fresh grass / looked up slowly
fish: Blub / under the water / a tiny worm / swam in a circle
bee: Buzz / in a hive / some honey / flew from flower to flower
owl: Hoo / in an old oak / a moth / turned its head all the way around
sheep: Baa / in the meadow / some clover / followed the others
hen: Cluck / in a coop / some corn / laid an egg
goat: Maa / on the rocks / an old sock / climbed onto a wall
pig: Oink / in a sty / a potato / rolled in the mud
snail: Shh / under a leaf / some lettuce / left a silver line
ladybug: Hum / on a stem / a drop of dew / counted its spots
deer: Snort / deep in the forest / some bark / lifted its ears
hedgehog: Snuffle / under the hedge / a beetle / became a ball
pony: Whinny / behind the barn / a lump of sugar / shook its mane
goose: Honk / near the gate / some oats / stretched its neck
crab: Click / under a rock / a shrimp / walked sideways
crow: Caw / on top of the tower / a shiny coin / hid something in its nest
"""
)

SIGHTS = _table(
    """
the park: swings / benches / runners / ducks on the pond / an ice cream cart
the forest: tall trees / mushrooms / a narrow path / green moss / fallen logs
the garden: roses / tomatoes / a watering can / busy bees / a stone frog
the beach: waves / shells / sand castles / striped towels / sleepy gulls
the river: smooth stones / a wooden raft / reeds / jumping fish / a fisherman
the farm: haystacks / a tractor / muddy boots / red hens / a milk can
the woods: ferns / acorns / shadows / spider webs / a hidden stream
the pond: lily pads / dragonflies / tadpoles / a little dock / wild ducks
the market: baskets of fruit / loud voices / cheese wheels / bright cloth / fresh fish
the hill: long grass / kites / a lonely tree / daisies / grazing sheep
the school: small desks / chalk / a globe / rows of coats / a big bell
the lake: rowboats / swans / a long pier / blue water / tents
the playground: a tall slide / a sandbox / a seesaw / chalk drawings / climbing ropes
the town: narrow streets / a clock / flower pots / a fountain / old lamps
the barn: bales of hay / a ladder / dusty tools / swallows / a lazy cat
the meadow: poppies / crickets / tall grass / butterflies / a broken fence
the library: high shelves / quiet readers / soft chairs / maps / a sleeping cat
the big tree: thick roots / an old swing / acorns / a bird house / carved names
the shop: jars of candy / a brass scale / ribbons / tin toys / a curtain
the cave: bats / dripping water / strange drawings / cold stones / an echo
the bridge: stone arches / passing boats / iron lamps / a painter / pigeons
the castle: flags / a deep moat / suits of armor / long stairs / a golden throne
the zoo: sleepy lions / monkeys / a tall giraffe / popcorn / penguins
the mountain: snow / steep rocks / eagles / a wooden hut / thin clouds
the field: wheat / a scarecrow / crows / poppies / a dirt road
the harbor: fishing nets / sails / ropes / gulls / a lighthouse
the bakery: warm rolls / sacks of flour / a hot oven / sugar roses / a long line
the old mill: a turning wheel / white dust / mice / heavy stones / sacks
the train station: tracks / a big clock / suitcases / steam / a man with a flag
the orchard: apple trees / ladders / full baskets / wasps / sweet smells
the island: palm trees / crabs / an old boat / coconuts / warm sand
the tower: a round room / many stairs / pigeons / a rusty bell / tiny windows
"""
)

JOBS = _table(
    """
baker: a rolling pin / made bread before the sun came up
farmer: a straw hat / looked after the cows
doctor: a black bag / made sick people well
fisherman: a long net / sailed out every night
painter: a brush behind one ear / painted doors and boats
sailor: a striped shirt / knew every star
postman: a heavy bag of letters / rode a squeaky bike
gardener: muddy gloves / talked to the roses
tailor: a needle and thread / sewed coats for everyone
carpenter: a hammer / made chairs and tables
fireman: a shiny helmet / was never afraid of smoke
clown: a red nose / could walk on two hands
king: a crown that was too big / liked pancakes more than gold
queen: a long green dress / played cards with the cook
knight: a dented shield / had lost his horse
witch: a pointed hat / could not find her broom
pilot: round glasses / had seen the clouds from above
clockmaker: a tiny screwdriver / was always on time
musician: an old violin / played songs in the street
shepherd: a wooden stick / counted sheep all day
"""
)

THING_USES = _table(
    """
ball: threw it high and caught it again
box: opened it and looked inside
kite: let it fly above the trees
hat: put it on and bowed
boat: let it float on the water
book: read it from the first page to the last
toy: played with it for an hour
drum: went boom, boom, boom on it
key: turned it in a small lock
stone: made it skip over the water
car: made it race along the floor
bell: rang it three times
shell: held it to one ear and heard the sea
balloon: held the string very tight
cup: drank warm milk from it
leaf: put it between the pages of a book
feather: blew it into the air
lamp: lit it, and the dark went away
basket: filled it to the top
map: followed the dotted line on it
flower: smelled it and sneezed
ring: wore it on one thumb
coin: saved it for a rainy day
train: pushed it around and around
puzzle: found the last piece of it
whistle: blew it as loud as possible
"""
)

FOOD_TASTES = _table(
    """
cookies: sweet and still warm
apples: crisp and juicy
cake: soft and full of cream
bread: fresh from the oven
berries: sweet and a little sour
soup: hot and salty
pancakes: golden with syrup
carrots: crunchy and orange
ice cream: cold and creamy
pie: warm and flaky
cheese: yellow and full of holes
honey: sticky and sweet
bananas: soft and ripe
nuts: hard and crunchy
grapes: round and purple
rice: white and steaming
corn: yellow with butter
muffins: soft with blueberries
peaches: fuzzy and sweet
jam: red and sticky
"""
)

TRAIT_DEEDS = _table(
    """
little: could hide inside a bucket
happy: sang before breakfast
curious: asked a hundred questions a day
kind: gave away the last cookie
brave: was not afraid of the dark
clever: could count backwards from fifty
shy: hid behind the curtain when guests came
cheerful: smiled even in the rain
gentle: never stepped on an ant
funny: made the milkman laugh
quiet: could hear the snow fall
silly: wore socks on both ears
sleepy: fell asleep in the soup
busy: did not sit down all day
lonely: talked to the moon
friendly: said hello to every tree
careful: looked both ways three times
tiny: slept in a shoe
playful: turned every spoon into a drum
stubborn: said no to everything
honest: told the truth even when it hurt
patient: waited a whole day for one fish
"""
)

COLOUR_SIMILES = _table(
    """
red: a ripe tomato
blue: the summer sky
yellow: a lemon
green: fresh grass
pink: a piglet
purple: a plum
orange: a pumpkin
brown: a chestnut
white: new snow
black: a moonless night
golden: the morning sun
silver: the moon on the water
"""
)

ELDER_HABITS = _table(
    """
mom: always sang in the kitchen
dad: could fix almost anything
grandma: knitted long socks
grandpa: told stories about the sea
mommy: gave the best hugs
daddy: snored like a bear
aunt: had seven cats
uncle: played the trumpet
teacher: knew the name of every star
neighbor: grew giant pumpkins
"""
)

GAMES: tuple[str, ...] = (
    "paint", "swim", "dance", "climb trees", "read", "sing", "run", "draw", "bake", "play hide and seek",
    "collect stones", "ride a bike", "jump rope", "build towers", "watch the clouds", "look for bugs", "tell jokes",
    "play the flute", "count stars", "fly kites", "skate", "plant seeds", "catch leaves", "make masks", "whistle",
    "write letters", "play chess", "feed ducks", "blow bubbles", "sail boats",
)  # fmt: skip
