"""What the order generator puts together: sentences and slot values, each belonging to one split only.

A template holds {quantity}, {product}, {date} and {customer}; greeting, urgency and small talk are sentences
of their own. The words are common ones with one spelling, so that a small model copies them rather than
respells them.
"""

from dataclasses import dataclass
from typing import Literal

Priority = Literal["low", "normal", "high"]


@dataclass(frozen=True)
class Texts:
    """Everything that one split is made of."""

    templates: tuple[str, ...]
    greetings: tuple[str, ...]
    small_talk: tuple[str, ...]
    urgency: dict[Priority, tuple[str, ...]]
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    materials: tuple[str, ...]
    things: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Templates, small talk and phrases of urgency."""
        return [
            *self.templates,
            *self.small_talk,
            *(phrase for group in self.urgency.values() for phrase in group),
        ]

    def values(self) -> list[str]:
        """Every text of the split, for the check that no two splits share one."""
        parts = [self.greetings, self.first_names, self.last_names, self.materials, self.things]
        return self.sentences() + [text for part in parts for text in part]


TRAIN = Texts(
    templates=(
        "this is {customer}. Please send {quantity} {product} on {date}.",
        "I would like to order {quantity} {product} for {date}. My name is {customer}.",
        "we need {quantity} {product} by {date}. Kind regards, {customer}",
        "can I get {quantity} {product}? They should be here on {date}. {customer}",
        "could you deliver {quantity} {product} on {date}? Thanks, {customer}",
        "{customer} here. I want to buy {quantity} {product}, to arrive on {date}.",
        "my name is {customer} and I need {quantity} {product} for {date}.",
        "please put {quantity} {product} aside for {customer}. I will pick them up on {date}.",
        "order for {customer}: {quantity} {product}, delivery on {date}.",
        "{quantity} {product}, please, for {date}. The name is {customer}.",
        "by {date} we would need {quantity} {product}. The order is for {customer}.",
        "on {date} I am having guests, so I need {quantity} {product}. Signed, {customer}",
        "I saw your {product} in the shop. Could I have {quantity} of them on {date}? {customer}",
        "do you still have the {product}? I would take {quantity}, for {date}. Best, {customer}",
        "for {date} please reserve {quantity} {product} under the name {customer}.",
        "my boss {customer} asked me to order {quantity} {product}. We expect them on {date}.",
        "I am writing for {customer}, who wants {quantity} {product} on {date}.",
        "about the {product}: we will take {quantity}. Send them on {date} to {customer}.",
        "{customer} would like {quantity} {product}. Delivery date: {date}.",
        "new order. Name: {customer}. Item: {product}. How many: {quantity}. When: {date}.",
        "item {product}, amount {quantity}, date {date}, customer {customer}.",
        "send them to {customer}, please: {quantity} {product}, no later than {date}.",
        "it is {customer} again. This time I need {quantity} {product} before {date}.",
        "we ran out of {product}. Please bring us {quantity} on {date}. Yours, {customer}",
        "I need some {product} for my house, {quantity} to be exact, on {date}. Greetings, {customer}",
        "would {date} work for {quantity} {product}? It is for {customer}.",
        "the {product} look great, so I take {quantity}. Ship them on {date}. Sincerely, {customer}",
        "please write down {quantity} {product} for me, {customer}, for {date}.",
    ),
    greetings=(
        "Hello,", "Hi,", "Hi there,", "Dear team,", "Good morning,", "Hey,", "Hello everyone,", "Dear Sir or Madam,",
        "Hi folks,", "Hello again,",
    ),
    small_talk=(
        "I hope you are well.", "It has been raining here all week.", "Your shop is my favorite.",
        "My neighbor told me about "
        "you.", "Thank you for the quick answer last time.", "I love your new website.",
        "The last delivery was perfect.", "We just moved to a new office.", "Sorry for writing so late.",
        "My phone is almost empty.", "Our garden is full of flowers.", "You can leave the box at the door.",
        "The dog is friendly, by the "
        "way.", "Please send the bill by mail.", "The last box came after three days.",
        "I have been a customer for 7 years.",
    ),
    urgency={
        "low": (
            "There is no rush.", "Take your time.", "It is not urgent.", "No hurry at all.", "This can wait.",
            "It is fine if it takes "
            "longer.", "Do it whenever you can.", "We are not in a hurry.", "A delay is no problem.",
            "It does not matter if it is "
            "late.", "We have time.", "Any time later is fine.", "Send it when you have a moment.",
            "It does not have to be "
            "now.", "There is no need for speed.", "Slow delivery is fine.", "There is time enough.",
            "No pressure from our "
            "side.", "It is no problem to wait.", "Whenever you like.", "We will gladly wait.",
        ),
        "normal": (
            "Normal delivery is fine.", "The usual delivery, please.", "Please handle it as usual.",
            "Standard shipping will do.", "Just treat it like any order.", "A regular delivery is enough.",
            "Nothing special is needed.", "The standard service is okay.", "Ship it the normal way.",
            "Regular shipping, please.", "Your normal service is fine.", "Deliver it as always.", "The ordinary way is okay.",
            "Handle it like all the others.", "The default shipping is good.", "Normal post, please.",
            "No special delivery is needed.", "Just send it the regular way.", "Standard speed is okay.",
            "Usual conditions, as ever.", "An ordinary delivery will do.",
        ),
        "high": (
            "This is urgent!", "We need it fast.", "Please hurry!", "It is very important.", "Please be quick.",
            "It can not wait.", "This is an emergency.", "Please rush this order.", "We are in a great hurry.",
            "It must not be late.", "Send it immediately.", "It has to be fast.", "There is no time to lose.",
            "We need it now.", "Every hour counts.", "Do it right away, please.", "Time is running out.",
            "As fast as you can, "
            "please.", "The matter is critical.", "Please act at once.", "We need this very soon.",
        ),
    },
    first_names=(
        "Alice", "Anna", "Brian", "Carl", "Charles", "Daniel", "David", "Diana", "Edward", "Emma", "Frank", "George", "Helen",
        "Henry", "Jack", "James", "Jane", "Julia", "Karen", "Kevin", "Laura", "Linda", "Lucy", "Martin", "Mary", "Michael",
        "Nancy", "Oliver", "Patrick", "Peter", "Rachel", "Richard", "Robert", "Rose", "Ruth", "Simon", "Susan", "Thomas",
        "Victor", "William",
    ),
    last_names=(
        "Adams", "Allen", "Anderson", "Bailey", "Bell", "Bennett", "Bishop", "Campbell", "Carter", "Clark", "Collins", "Cooper",
        "Davis", "Edwards", "Evans", "Foster", "Fox", "Garcia", "Gibson", "Grant", "Hall", "Harris", "Hill", "Hughes",
        "Jackson", "Johnson", "Jones", "Kelly", "King", "Lewis", "Lopez", "Martinez", "Miller", "Moore", "Morgan", "Murphy",
        "Nelson", "Parker", "Price", "Reed",
    ),
    materials=(
        "red", "blue", "black", "wooden", "small", "glass", "round", "steel", "paper", "cotton", "heavy", "soft", "old",
        "golden", "plastic", "thick", "square", "cheap", "tall", "leather",
    ),
    things=(
        "chairs", "tables", "lamps", "boxes", "books", "cups", "bottles", "bags", "doors", "windows", "shirts", "shoes",
        "clocks", "pictures", "plates", "bowls", "carpets", "pens", "baskets", "mirrors", "knives", "ropes", "wheels", "tents",
        "pipes", "toys", "coats", "gloves", "benches", "buckets",
    ),
)  # fmt: skip

HELD_OUT = Texts(
    templates=(
        "I am {customer} and I want to order {quantity} {product} for {date}.",
        "please deliver {quantity} {product} to {customer} on {date}.",
        "could we have {quantity} {product} by {date}? Best wishes, {customer}",
        "{customer} speaking. We would like {quantity} {product} on {date}.",
        "for {customer}, please: {quantity} {product}, to be delivered on {date}.",
        "I would like to buy {quantity} {product}. I need them on {date}. Many thanks, {customer}",
        "is it possible to get {quantity} {product} on {date}? My name is {customer}, by the way.",
        "on {date} we will need {quantity} {product}. Please send them to {customer}.",
        "we like your {product} and would order {quantity} of them for {date}. Regards, {customer}",
        "name {customer}, product {product}, number {quantity}, delivery {date}.",
        "my colleague {customer} needs {quantity} {product} before {date}.",
        "please note an order of {quantity} {product} for {date}, in the name of {customer}.",
        "are there any {product} left? {customer} would take {quantity} on {date}.",
        "the order this time is {quantity} {product}, for {date}. Cheers, {customer}",
    ),
    greetings=("Good day,", "Good evening,", "Dear shop,", "Hello team,", "Hi all,", "Greetings,"),
    small_talk=(
        "I hope you had a nice weekend.", "The weather is lovely today.", "My sister likes your store a lot.",
        "We are painting the kitchen.", "Thanks for your help last month.", "Please ring the bell twice.",
        "I really like the new catalog.", "Our cat is sleeping on the desk.", "You helped me two weeks ago.",
        "We live on floor 4."
    ),
    urgency={
        "low": (
            "There is no hurry.", "We have plenty of time.", "Whenever it suits you.", "Later is fine too.",
            "No need to do it right now.", "We are happy to wait for it.",
        ),
        "normal": (
            "Send it the usual way.", "Your standard delivery, please.", "Normal speed is good.",
            "Regular post is all we need.", "Please treat it as you always do.", "Ordinary shipping is okay.",
        ),
        "high": (
            "We need it right away!", "As soon as possible, please!", "Time is very short.", "Please do it at once.",
            "Every day counts.", "The matter is really urgent.",
        ),
    },
    first_names=(
        "Adam", "Alan", "Andrew", "Arthur", "Barbara", "Ben", "Chris", "Donald", "Elizabeth", "Eric", "Grace", "Harry", "Jason",
        "John", "Joseph", "Kate", "Lisa", "Maria", "Mark", "Paul", "Philip", "Roger", "Sam", "Sarah", "Steven", "Walter",
    ),
    last_names=(
        "Baker", "Brooks", "Butler", "Cook", "Cox", "Ford", "Graham", "Nash", "Hamilton", "Howard", "Lee", "Marshall", "Mason",
        "Mitchell", "Palmer", "Perry", "Roberts", "Robinson", "Ross", "Russell", "Scott", "Smith", "Warren", "Taylor", "Turner",
        "Walker", "Watson", "Webb", "Wilson", "Young",
    ),
    materials=("green", "white", "large", "metal", "silver", "iron", "stone", "new", "long", "light", "yellow", "brown"),
    things=(
        "desks", "beds", "cards", "hats", "keys", "flags", "candles", "pots", "pans", "spoons", "balls", "boards", "brushes",
        "curtains", "tools", "blankets", "shelves", "frames", "jackets", "bricks",
    ),
)  # fmt: skip
