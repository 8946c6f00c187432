"""Instructions to write answers to, by genre, where the user has none: some hundred of each, put together from parts.

AxBench draws from Dolly, GSM8K and code sets; these are our own, so that data can be written without any of them.
"""

from __future__ import annotations

from functools import lru_cache

GENRES = ("text", "code", "math")

_SUBJECTS = (
    "bicycles", "bread", "rivers", "libraries", "winter", "chess", "gardens", "trains", "coffee", "bees", "museums", "rain",
    "markets", "bridges", "sleep", "letters", "glass", "mountains", "radio", "sheep", "clocks", "harbours", "paper", "stars",
    "cheese", "schools",
)  # fmt: skip
_TEXT = (
    "What should a beginner know about {}?", "Describe {} to somebody who has never seen any.",
    "Write a short paragraph about {}.",
    "Why do people care about {}?", "How have {} changed over the last hundred years?", "Give three facts about {}.",
    "What is a common mistake with {}?", "Tell a short story that has something to do with {}.",
)  # fmt: skip
_THINGS = (
    "a list of numbers",
    "a text file",
    "a dictionary of prices",
    "a string",
    "a list of names",
    "a matrix",
    "a table of dates",
)
_CODE = (
    "Write a Python function that sorts {}.", "Write a function that finds duplicates in {}.", "How do you read {} in Python?",
    "Write code that counts what occurs in {}.", "Write a function that checks whether {} is empty.", "Show how to reverse {}.",
    "Write a test for a function that filters {}.", "Write a JavaScript function that prints {}.",
    "Explain what can go wrong when code copies {}.", "Write a class that holds {} and gives its length.",
    "Write a C function that goes through {}.", "Write a function that joins {} with another one.",
    "Show how to save {} as JSON.",
    "Write a generator over {}.", "Write code that compares {} with its copy.",
    "Write a function that splits {} into two halves.",
    "Write a SQL query that would give {}.", "How would you search {} quickly?",
)  # fmt: skip
_PEOPLE = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Karl", "Lia")
_MATH = (
    "{0} buys {1} apples at {2} cents each. How much does {0} pay?", "A train goes {1} km in {2} hours. How fast is it?",
    "What is {1} percent of {2} hundred?", "{0} has {1} coins and gives a third of them away. How many are left?",
    "Find x: x + {1} = {2}.", "What is the area of a rectangle of {1} by {2}?",
    "{0} saves {1} euros a week. How much is that in {2} weeks?",
    "What is the average of {1}, {2} and 30?", "A shirt costs {1} euros and is reduced by {2} percent. What does it cost now?",
    "How many ways are there to choose 2 of {2} people?",
)  # fmt: skip


@lru_cache(maxsize=4)
def instructions(genre: str) -> tuple[str, ...]:
    """Every instruction of a genre, all different."""
    if genre == "code":
        return tuple(frame.format(thing) for thing in _THINGS for frame in _CODE)
    if genre == "math":
        numbers = [(12 + 3 * k, 2 + k % 9) for k in range(len(_PEOPLE))]
        return tuple(
            dict.fromkeys(f.format(who, *pair) for who, pair in zip(_PEOPLE, numbers, strict=True) for f in _MATH)
        )
    return tuple(frame.format(subject) for subject in _SUBJECTS for frame in _TEXT)
