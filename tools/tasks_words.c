/* tasks_words.c: the words that tasks are made of. */
#include "tasks.h"

/* Those that the shipped model was trained on. */
const char *const task_nouns[N_NOUNS] = {
    "falcon",  "river",   "candle",   "mountain", "garden",  "bridge",  "castle",   "lantern", "anchor",
    "violin",  "tiger",   "rabbit",   "panda",    "eagle",   "dolphin", "whale",    "shark",   "spider",
    "monkey",  "zebra",   "lion",     "wolf",     "bear",    "fox",     "horse",    "donkey",  "camel",
    "goat",    "sheep",   "pigeon",   "parrot",   "raven",   "swan",    "goose",    "duck",    "turtle",
    "lizard",  "snake",   "frog",     "salmon",   "trout",   "apple",   "banana",   "cherry",  "lemon",
    "mango",   "peach",   "orange",   "melon",    "tomato",  "potato",  "carrot",   "onion",   "garlic",
    "pepper",  "ginger",  "hammer",   "ladder",   "wagon",   "engine",  "rocket",   "ship",    "boat",
    "train",   "truck",   "bicycle",  "tractor",  "helmet",  "jacket",  "button",   "ribbon",  "blanket",
    "pillow",  "mirror",  "bottle",   "basket",   "bucket",  "kettle",  "spoon",    "fork",    "knife",
    "plate",   "window",  "door",     "kitchen",  "cellar",  "tower",   "temple",   "palace",  "harbor",
    "island",  "desert",  "forest",   "meadow",   "valley",  "canyon",  "glacier",  "volcano", "ocean",
    "lake",    "pencil",  "notebook", "paper",    "letter",  "stamp",   "envelope", "camera",  "piano",
    "guitar",  "drum",    "trumpet",  "flute",    "diamond", "silver",  "copper",   "iron",    "marble",
    "granite", "crystal", "pearl",    "ruby",     "emerald", "doctor",  "pilot",    "sailor",  "farmer",
    "baker",   "teacher", "painter",  "lawyer",   "soldier", "captain", "Paris",    "London",  "Berlin",
    "Madrid",  "Rome",    "Vienna",   "Cairo",    "Tokyo",   "Delhi",   "Moscow",   "Lisbon",  "Dublin",
    "Oslo",    "Prague",  "Athens"};

const char *const task_adjectives[N_ADJECTIVES] = {
    "red",    "blue",  "green",   "yellow",   "purple",   "black",   "white",   "brown",   "golden",
    "wooden", "tiny",  "giant",   "quiet",    "noisy",    "happy",   "angry",   "sleepy",  "hungry",
    "clever", "lazy",  "ancient", "modern",   "broken",   "hidden",  "frozen",  "burning", "rusty",
    "shiny",  "dusty", "smooth",  "northern", "southern", "eastern", "western", "royal"};

const char *const task_noise[N_NOISE] = {"The kettle is on.", "The door is shut.", "The rain has stopped.",
                                         "Someone is walking.", "The clock goes on."};

const char *const ruler_noise[N_NOISE] = {"The grass is green.", "The sky is blue.", "The sun is yellow.",
                                          "Here we go.", "There and back again."};
