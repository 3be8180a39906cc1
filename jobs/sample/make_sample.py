"""Make the sample shop: SYNTHETIC titles and interactions, the project's own invention, the same bytes every time.

    python jobs/sample/make_sample.py [--out DIR]

Forty themes in ten circles of four. A theme gives words to its items' titles and draws its fans; a circle holds
themes liked by the same people, whether or not their words are alike (stargazing and synthesizer records).
Only ``random.Random`` and division are used, and the files are plain CSV: both stay the same across versions,
which neither NumPy's generators nor the output of gzip promise.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from random import Random

SEED = 101
ITEMS_PER_THEME = 50
NUM_USERS = 3000
NUM_NEW_ITEMS = 30  # items nobody has touched yet
NUM_RELISTED_TITLES = 15  # items that carry another item's title
NOISE_SHARE = 0.15  # interactions that follow no taste
RELATED_SHARE = 0.7  # second and third themes from the first one's circle
NUM_TIERS = 3  # price tiers: shared by users and items, told by no title
TIER_PULL = 4.0  # how much likelier an item of the user's own tier is
FEWEST, MOST, MEAN = 10, 60, 24.5  # interactions of a user; the mean before the cut at MOST
START, DAYS = 1_700_000_000, 600  # unix seconds; users join over this many days

# name | kind | qualifiers | heads | tails, indented where a line goes on. Kinds are the keys of PATTERNS; each four
# themes make a circle.
THEME_TABLE = """
Sourdough Baking | goods | Cane, Linen-Lined, Floured, Long-Ferment, Stoneground, Crusty | Banneton Proofing Basket,
    Dough Whisk, Bread Lame, Dutch Oven, Rye Flour, Sourdough Starter, Bench Scraper, Baking Stone, Bread Flour |
    for Country Loaves, for Open Crumb, with Scoring Blades, for Overnight Proofing
Home Espresso | goods | Single-Boiler, Bottomless, Dark-Roast, Double-Wall, Conical-Burr, Barista |
    Espresso Machine, Coffee Grinder, Portafilter, Milk Frothing Jug, Espresso Beans, Coffee Tamper,
    Cappuccino Cups, Knock Box, Coffee Scale | for Ristretto, for Latte Art, with Pressure Gauge, for Morning Coffee
Pickling & Fermenting | goods | Wide-Mouth, Airlock, Stoneware, Brined, Tangy, Live-Culture | Fermentation Crock,
    Pickling Jar, Kimchi Container, Glass Weights, Sauerkraut Tamper, Kombucha Brewer, Pickling Spice,
    Cabbage Slicer, Miso Starter | for Sauerkraut, for Dill Cucumbers, with Water Seal, for Small Batches
Kitchen Knives | goods | Carbon-Steel, Hand-Forged, Damascus, Walnut-Handled, Eight-Inch, Razor-Sharp |
    Chef's Knife, Santoku, Paring Knife, Whetstone, Honing Rod, Knife Roll, Boning Knife, Magnetic Knife Block,
    Nakiri Vegetable Knife | for Fine Slicing, with Blade Guard, for Left-Handed Cooks, for Filleting & Trimming
Stargazing | goods | Refractor, Wide-Field, Motorised, Red-Light, Collapsible, Ninety-Millimetre | Telescope,
    Equatorial Mount, Eyepiece Kit, Star Chart, Planisphere, Moon Filter, Astronomy Binoculars, Finder Scope,
    Barlow Lens | for Deep-Sky Viewing, for Saturn & Jupiter, with Tripod, for Dark Nights
Space Opera | novel | Last, Burning, Derelict, Drifting, Hollow, Imperial | Starship, Armada, Wormhole, Dreadnought,
    Colony, Orbital, Warp Gate, Galactic Throne, Void Captain | of the Outer Systems, beyond the Nebula,
    at Tavik Station, among Dead Suns
Synthesizer Records | music | Neon, Modular, Analogue, Midnight, Chrome, Sequenced | Oscillators, Arpeggio,
    Circuits, Waveforms, Night Drive, Filter Sweep, Voltage, Drum Machine, Electric Horizon | (Synthwave LP),
    (Ambient Electronic LP), (Cassette Reissue), (Modular Live Sessions)
Science Fiction Films | film | Android, Last, Frozen, Silent, Cloned, Forbidden | Planet, Mutiny, Time Machine,
    Invasion, Laboratory, Replica, Space Station, Robot Uprising, Alien Signal | from Mars, in the Year 3000,
    of Tomorrow, on Moonbase Nine
Trail Running | goods | Lugged, Breathable, Ultralight, Hydration, Reflective, Mud-Grip | Trail Running Shoes,
    Running Vest, Soft Flask, Running Gaiters, Split Shorts, Race Belt, Energy Gels, Running Cap, Headlamp |
    for Ultramarathons, for Rocky Descents, for Muddy Hills, with Toe Guard
Backpacking | goods | Three-Season, Frameless, Down-Filled, Waterproof, Titanium, Packable | Backpacking Tent,
    Sleeping Bag, Rucksack, Camping Stove, Trekking Poles, Sleeping Mat, Dry Bag, Water Filter, Camp Cook Pot |
    for Thru-Hikers, for Two Campers, with Stuff Sack, for Wet Summers
Rock Climbing | goods | Dynamic, Screwgate, Hook-and-Loop, Bouldering, Padded, Knotted | Climbing Rope, Carabiner,
    Climbing Shoes, Climbing Harness, Chalk Bag, Crash Pad, Belay Device, Quickdraws, Hangboard | for Sport Routes,
    for Overhangs, with Wire Gate, for Big Walls & Trad
Mountain Documentaries | film | Frozen, Unclimbed, Thin, Sacred, Hidden, Merciless | Summit, North Face, Expedition,
    Ridge, Avalanche, Glacier, Base Camp, Alpine Winter, Mountaineers | of the Himalaya, on the Roof of the World,
    in the Andes, without Oxygen
Orchid Growing | goods | Fragrant, Potted, Tropical, Flowering, Miniature, Greenhouse | Moth Orchid, Orchid Pot,
    Orchid Bark Mix, Orchid Fertiliser, Sphagnum Moss, Misting Bottle, Cattleya Division, Plant Stakes,
    Slipper Orchid | for Windowsills, for Repotting, for Aerial Roots, with Drainage Saucer
Vegetable Gardening | goods | Heirloom, Raised, Organic, Early, Galvanised, Climbing | Tomato Seeds, Garden Bed,
    Seed Tray, Compost Bin, Runner Beans, Hand Trowel, Watering Can, Courgette Seeds, Pruning Shears |
    for Allotments, for Spring Sowing, for Peas & Beans, with Propagator Lid
Beekeeping | goods | Cedar, Ventilated, Apiary, Stainless, Ten-Frame, Honeycomb | Beehive, Bee Smoker,
    Beekeeper Suit, Honey Extractor, Hive Tool, Queen Excluder, Brood Frames, Bee Feeder, Honey Jars |
    for Backyard Apiaries, with Veil, for Honey Harvest, for Swarm Season
Bird Watching | goods | Squirrel-Proof, Roof-Prism, Hanging, Woodland, Window, Camouflage | Bird Feeder,
    Birding Binoculars, Nest Box, Spotting Scope, Sunflower Hearts, Bird Bath, Songbird Field Guide,
    Birder's Logbook, Hummingbird Feeder | for Garden Birds, for Finches & Tits, for Warblers, with Perches
Jazz Vinyl | music | Smoky, Blue, Cool, After-Hours, Crooked, Uptown | Saxophone, Trumpet Ballads, Bebop,
    Swing Quartet, Trio, Rhythm Section, Horns, Brushes & Bass, Hard Bop | (Jazz LP), (Live at the Lantern Club),
    (Mono Jazz Reissue), (180 g Vinyl)
Cocktail Bar | goods | Smoked, Weighted, Barrel-Aged, Crystal, Aromatic, Mirror-Finish | Cocktail Shaker,
    Whisky Tumblers, Mixing Glass, Orange Bitters, Martini Glasses, Bar Spoon, Hawthorne Strainer, Muddler,
    Ice Ball Mould | for Old Fashioneds, for Gin & Tonic, with Recipe Cards, for Home Bartenders
Film Noir | film | Crooked, Double, Dark, Fatal, Lonely, Rain-Soaked | Alibi, Gangster, Dame, Blackmail, Alley,
    Private Eye, Getaway, Femme Fatale, Night Train Murder | in the Shadows, at Midnight, without Mercy,
    on Pier Street
Hard-Boiled Crime | novel | Dead, Dirty, Broken, Bitter, Red, Unmarked | Detective, Hitman, Homicide, Informant,
    Bullet, Ransom, Crooked Cop, Cold Case, Body Count | on Harbor Street, before Dawn, in a Rotten City,
    at the Precinct
Knitting | goods | Hand-Dyed, Bamboo, Merino, Chunky, Circular, Aran-Weight | Knitting Needles, Sock Yarn,
    Wool Skein, Stitch Markers, Yarn Bowl, Cable Needle, Sweater Pattern, Row Counter, Alpaca Yarn | for Fair Isle,
    for Socks & Mittens, for Baby Blankets, with Project Bag
Quilting | goods | Patchwork, Rotary, Cotton, Self-Healing, Quarter-Inch, Calico | Quilting Fabric Bundle,
    Fabric Cutter, Quilt Batting, Quilting Ruler, Cutting Mat, Sewing Thread, Quilt Pattern, Applique Pins,
    Quilting Hoop | for Log Cabin Blocks, for Binding & Borders, for Hand Quilters, with Templates
Cosy Mysteries | novel | Poisoned, Vanishing, Curious, Buttered, Missing, Meddling | Scone, Vicar, Teapot,
    Librarian, Village Fete, Knitting Circle, Tabby Cat, Marmalade Murder, Flower Show | at Larkspur Cottage,
    of Little Wexcombe, in the Parish Hall, before Teatime
Loose Leaf Tea | goods | First-Flush, Smoky, Jasmine, Organic, Malty, Ceramic | Darjeeling Tea, Oolong Tea,
    Green Tea, Teapot, Tea Infuser, Earl Grey, Tea Caddy, Matcha Powder, Herbal Tea | for Afternoon Tea,
    with Bergamot & Cornflower, for Gongfu Brewing, in a Gift Tin
Woodworking | goods | Dovetail, Japanese, Beech, Cast-Iron, Low-Angle, Mortise | Hand Plane, Chisel Set, Pull Saw,
    Marking Gauge, Workbench Vise, Wood Glue, Carving Mallet, Bar Clamps, Wood Finishing Oil | for Cabinet Makers,
    for Oak & Walnut, for Fine Joinery, with Honing Guide
Model Railways | goods | OO-Gauge, Diecast, Weathered, Digital, Narrow-Gauge, Branch-Line | Steam Locomotive,
    Railway Track, Signal Box, Goods Wagon, Passenger Coach, Station Platform, Train Controller, Turntable,
    Diesel Shunter | for Small Layouts, with Working Lights, for Starter Sets, with Smoke Unit
Hobby Electronics | goods | Temperature-Controlled, Solderless, Programmable, Benchtop, Lead-Free, Four-Channel |
    Soldering Iron, Breadboard, Microcontroller Board, Multimeter, Oscilloscope, Resistor Assortment, Jumper Wires,
    Sensor Module, Bench Power Supply | for Robotics, for Circuit Makers, with Alligator Clips, for LEDs & Motors
Mechanical Keyboards | goods | Hot-Swap, Tactile, Linear, Dye-Sub, Sixty-Percent, Lubed | Mechanical Keyboard,
    Keycap Set, Key Switches, Wrist Rest, Coiled USB Cable, Switch Puller, Keyboard Case, Stabilisers, Macro Pad |
    for Quiet Typing, for Programmers, with Foam & Gasket Mount, for Split Layouts
Wooden Toys | goods | Rainbow, Pull-Along, Stacking, Painted, Chunky, Montessori | Building Blocks, Wooden Train,
    Shape Sorter, Toy Kitchen, Balance Bike, Toddler Xylophone, Animal Ark, Push Walker, Nesting Dolls |
    for Toddlers, for Ages 2 & Up, for Little Hands, with Cotton Bag
Picture Books | novel | Sleepy, Tiny, Grumpy, Very Muddy, Brave, Giggling | Hedgehog, Bear, Duckling, Dragon,
    Elephant, Bunny, Kitten, Little Tractor, Penguin | Who Lost a Sock, Goes to Bed, and the Big Umbrella,
    at the Seaside
Jigsaw Puzzles | goods | 1000-Piece, 500-Piece, Panoramic, Shaped, Extra-Large, Round | Harbour Jigsaw Puzzle,
    Meadow Jigsaw Puzzle, Puzzle Mat, World Map Jigsaw, Puzzle Sorting Trays, Castle Jigsaw, Bookshop Jigsaw Puzzle,
    Hot-Air Balloon Jigsaw, Puzzle Glue | for Rainy Days, with Poster, for Grown-Ups, with Velvet Pieces
Board Games | goods | Cooperative, Strategy, Two-Player, Tile-Laying, Family, Quick-Play | Board Game, Dice Game,
    Card Game, Worker-Placement Game, Trivia Game, Game Expansion, Bluffing Game, Dungeon Crawl Game,
    Deck-Building Game | for Game Night, for 3 to 6 Players, with Wooden Meeples, of Trading & Farming
Fly Fishing | goods | Lightweight, Classic, River, Handmade, All-Season, Trout | Fly Rod, Fly Reel, Trout Flies,
    Fishing Waders, Landing Net, Tippet Spool, Fly Box, Wading Boots, Fly-Tying Vise | for Brown Trout,
    for Salmon & Grayling, for Mountain Streams, with Rod Tube
Sea Kayaking | goods | Touring, Inflatable, Neoprene, Carbon, Buoyant, Low-Profile | Sea Kayak, Kayak Paddle,
    Spray Deck, Buoyancy Aid, Deck Bag, Paddle Float, Bilge Pump, Kayak Trolley, Paddling Jacket |
    for Coastal Touring, for Open Water, with Skeg, for Surf & Swell
Age of Sail | novel | Windward, Mutinous, Drowned, Salt-Stained, Admiral's, Lost | Frigate, Midshipman, Privateer,
    Lighthouse, Broadside, Harpooner, Man-of-War, Shipwreck, Sea Chart | off Cape Sorrow, under Full Sail,
    in the Roaring Latitudes, of the Windward Fleet
Home Aquarium | goods | Planted, Nano, Submersible, Tropical, Slow-Release, Rimless | Fish Tank, Aquarium Filter,
    Aquarium Heater, Fish Flakes, Aquatic Moss, Driftwood, Aquarium Light, Aquarium Gravel, Coral Salt |
    for Tetras & Shrimp, for Betta Fish, with Air Pump, for Reef Tanks
Yoga | goods | Non-Slip, Cork, Organic-Cotton, Restorative, Buckwheat, High-Waist | Yoga Mat, Yoga Block,
    Yoga Strap, Meditation Cushion, Yoga Leggings, Bolster, Yoga Wheel, Incense Sticks, Eye Pillow | for Hot Yoga,
    for Vinyasa Flow, for Sun Salutations, for Stretch & Balance
Strength Training | goods | Adjustable, Olympic, Cast-Iron, Knurled, Heavy-Duty, Powder-Coated | Dumbbells, Barbell,
    Kettlebell, Weight Bench, Squat Rack, Lifting Belt, Bumper Plates, Pull-Up Bar, Whey Protein | for Deadlifts,
    for Home Gyms, for Squats & Presses, with Spring Collars
Road Cycling | goods | Aero, Tubeless, Thermal, Clipless, Carbon-Rail, Compact | Bike Helmet, Road Tyres,
    Cycling Jersey, Bib Shorts, Bike Pedals, Bicycle Saddle, Cycling Computer, Chain Lube, Bar Tape |
    for Century Rides, for Winter Miles, for Hill Climbs, for Sprints & Crits
Dog Walking | goods | Padded, Tough, Waterproof, Retractable, Orthopaedic, Squeaky | Dog Harness, Dog Lead,
    Dog Treats, Dog Coat, Dog Bed, Tennis Ball Launcher, Puppy Collar, Dog Toy, Travel Water Bowl | for Large Dogs,
    for Puppies, for Terriers & Spaniels, with Reflective Trim
"""

# What a title looks like. {b} a brand, {p} a person, {q} a qualifier, {h} a head, {t} a tail, {n} the theme.
PATTERNS = {
    "goods": (
        *("{b} {q} {h}", "{b} {h} {t}", "{q} {h} {t}", "{b} {q} {h} {t}", "{b} {h}, {q}"),
        *("{n}: A Handbook by {p}", "{b} {h} (Gift Box)", "{n} for Beginners by {p}"),
    ),
    "novel": ("The {q} {h}", "The {h} {t}", "The {q} {h} {t}", "{p}: The {q} {h}", "The {q} {h} ({n} Paperback)"),
    "music": ("{p} - {q} {h} {t}", "{p} Ensemble - {h} {t}", "{q} {h} {t}", "{p} & Friends - {q} {h} (LP)"),
    "film": (
        "The {q} {h} (Film on Disc)",
        "{h} {t} (Restored Edition)",
        "The {q} {h} {t}",
        "{h} {t}, Directed by {p}",
        "The {q} {h} ({n})",
    ),
}
BRAND_PARTS = (
    "Brel Quor Tansel Ovin Mirl Fenra Drusk Halv Yarro Ostel Vemm Kelpi",
    "wick moor holt dane lo bury ique crest",
)
NAME_PARTS = (
    "Maren Otis Ilse Tobin Petra Anselm Wynn Dorrit Calla Bram",
    "Olcott Quillfeather Vantry Sorrel Hask Umber Lindqvale Pell",
)


@dataclass(frozen=True)
class Theme:
    """A subject of titles and of tastes; themes of one circle share their fans."""

    name: str
    circle: int
    kind: str
    qualifiers: list[str]
    heads: list[str]
    tails: list[str]


@dataclass(frozen=True)
class Item:
    """An item with what the files leave out: its theme, its price tier and how well it sells (0: not at all yet)."""

    item_id: str
    title: str
    theme: int
    tier: int
    popularity: float


def read_themes() -> list[Theme]:
    """Return the themes of ``THEME_TABLE``; an item's ``theme`` is a position in this list."""
    rows = [
        [cell.strip() for cell in line.split("|")] for line in THEME_TABLE.replace("\n    ", " ").strip().splitlines()
    ]
    return [
        Theme(name, position // 4, kind, qualifiers.split(", "), heads.split(", "), tails.split(", "))
        for position, (name, kind, qualifiers, heads, tails) in enumerate(rows)
    ]


def make_items() -> list[Item]:
    """Return the catalog in the order of its ids, which says nothing about themes."""
    rng = Random(SEED)
    titled = [
        (title, theme, rank)
        for theme, words in enumerate(read_themes())
        for rank, title in enumerate(_titles(words, rng), start=1)
    ]
    rng.shuffle(titled)
    items = []
    for position, (title, theme, rank) in enumerate(titled):
        is_new = position % (len(titled) // NUM_NEW_ITEMS) == 0
        popularity = 0.0 if is_new else _theme_popularity(theme) / (rank + 2)
        items.append(Item(f"p{position + 1:04d}", title, theme, rng.randrange(NUM_TIERS), popularity))
    return _relist(items, rng)


def make_interactions(items: list[Item]) -> list[tuple[str, str, int]]:
    """Return (user, item, unix second) rows in the order of time; no pair comes twice."""
    rng = Random(SEED + 1)
    sellable = [item for item in items if item.popularity > 0]
    rows = []
    for user in range(1, NUM_USERS + 1):
        now = START + rng.randrange(DAYS * 86_400)
        for item in _draw_history(sellable, rng):
            rows.append((f"u{user:04d}", item.item_id, now))
            now += 60 + int(rng.expovariate(1 / (4 * 86_400)))  # four days between two on average
    return sorted(rows, key=lambda row: (row[2], row[0]))


def write_sample(out: Path) -> None:
    """Write ``items.csv`` and ``interactions.csv`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    items = make_items()
    _write_csv(out / "items.csv", ("item_id", "title"), [(item.item_id, item.title) for item in items])
    _write_csv(out / "interactions.csv", ("user_id", "item_id", "time"), make_interactions(items))


def _theme_popularity(theme: int) -> float:
    # Mixes the order of the table (17 and 40 share no factor); the best-loved theme draws six times the least.
    return 1 / (8 + theme * 17 % 40)


def _titles(theme: Theme, rng: Random) -> list[str]:
    """Return ITEMS_PER_THEME different titles; an ampersand is left as an HTML entity half the time."""
    brands = ["".join(_pick(BRAND_PARTS, rng)) for _ in range(6)]
    people = [" ".join(_pick(NAME_PARTS, rng)) for _ in range(6)]
    titles: dict[str, None] = {}
    while len(titles) < ITEMS_PER_THEME:
        title = rng.choice(PATTERNS[theme.kind]).format(
            b=rng.choice(brands),
            p=rng.choice(people),
            q=rng.choice(theme.qualifiers),
            h=rng.choice(theme.heads),
            t=rng.choice(theme.tails),
            n=theme.name,
        )
        titles[title] = None
    return [escape(title, quote=False) if rng.random() < 0.5 else title for title in titles]


def _pick(parts: tuple[str, str], rng: Random) -> list[str]:
    return [rng.choice(part.split()) for part in parts]


def _relist(items: list[Item], rng: Random) -> list[Item]:
    """Return the catalog with NUM_RELISTED_TITLES items carrying the title of another item of their theme."""
    relisted = list(items)
    for position in rng.sample(range(len(items)), NUM_RELISTED_TITLES):
        item = items[position]
        twin = rng.choice([other for other in items if other.theme == item.theme and other is not item])
        relisted[position] = Item(item.item_id, twin.title, item.theme, item.tier, item.popularity)
    return relisted


def _draw_history(sellable: list[Item], rng: Random) -> list[Item]:
    """Return a user's items in order: one to three themes, one price tier, and some noise."""
    num_items = min(MOST, FEWEST + int(rng.expovariate(1 / (MEAN - FEWEST))))
    tastes = _draw_themes(1 + (num_items > 25) + (rng.random() < 0.5), rng)
    tier = rng.randrange(NUM_TIERS)
    liked = [item for item in sellable if item.theme in tastes]
    likings = accumulate(
        item.popularity / _theme_popularity(item.theme) * (TIER_PULL if item.tier == tier else 1) for item in liked
    )
    taste, noise = (liked, list(likings)), (sellable, list(accumulate(item.popularity for item in sellable)))
    history: dict[str, Item] = {}
    while len(history) < num_items:
        pool, weights = noise if rng.random() < NOISE_SHARE else taste
        item = rng.choices(pool, cum_weights=weights)[0]
        history.setdefault(item.item_id, item)
    return list(history.values())


def _draw_themes(count: int, rng: Random) -> list[int]:
    """Return different themes: the first by its popularity, the others mostly from the first one's circle."""
    num_themes = len(read_themes())
    first = rng.choices(range(num_themes), [_theme_popularity(theme) for theme in range(num_themes)])[0]
    themes = [first]
    while len(themes) < count:
        related = range(first // 4 * 4, first // 4 * 4 + 4)
        theme = rng.choice(related if rng.random() < RELATED_SHARE else range(num_themes))
        if theme not in themes:
            themes.append(theme)
    return themes


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str | int, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the synthetic sample shop.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder the two files go to")
    write_sample(parser.parse_args().out)
