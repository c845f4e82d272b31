"""Templates of LC-Rec's tasks, written anew.

`{history}` is the user's purchases, oldest first; `{item}` an item's ID; `{text}` its description; `{query}` a search
query; `{field}` "title" or "description". One template is drawn for each sample (`teacher/tasks.py`).
"""

SEQREC = [
    # the first is the prompt for recommendations after training
    "The user bought these items, oldest first: {history}. What comes next? Answer: ",
    "Purchases in order of time: {history}. Predict the next item. Answer: ",
    "Here is a shopping history: {history}. Which item will be chosen now? Answer: ",
    "After {history}, the user will most likely buy: ",
    "A customer has ordered {history}, in this order. Name the item that the customer orders next. Answer: ",
    "{history} are in the user's past orders. Recommend one more item. Answer: ",
    "Given the items {history}, sorted from the earliest to the latest, which one follows? Answer: ",
    "Read this list of purchases and continue it with one item: {history}. Answer: ",
    "So far the user has chosen {history}. The next choice is: ",
]

ITEM2INDEX = [
    "Which item is described as follows? {text} Answer: ",
    "Item description: {text} Its identifier is: ",
    "{text} Name the item: ",
    "Find the item in the catalogue that fits this text: {text} Answer: ",
    "Someone describes a product like this: {text} Which product is it? Answer: ",
    "Give the identifier of the item with these details. {text} Answer: ",
    "A shop lists an item as: {text} The item is: ",
    "Read the product page and say which item it shows. {text} Answer: ",
]

INDEX2ITEM = [
    "Describe the item {item}. Answer: ",
    "What is {item}? Answer: ",
    "The item {item} is called: ",
    "Tell the name of the product {item}. Answer: ",
    "Which product hides behind the identifier {item}? Answer: ",
    "A customer asks what {item} is. Reply with its title. Answer: ",
    "Write the title of item {item}. Answer: ",
    "In the catalogue, {item} is listed as: ",
]

FUSION_TO_TEXT = [
    "The user bought {history}, oldest first. What is the {field} of the next item? Answer: ",
    "Given the purchases {history}, write the {field} of the item that follows. Answer: ",
    "After {history} comes an item with this {field}: ",
    "Here are a customer's orders by date: {history}. Predict the {field} of the coming one. Answer: ",
    "Someone who has chosen {history} will want another item. Give its {field}. Answer: ",
    "Continue the shopping history {history} by one item, and tell the {field} of that item. Answer: ",
    "From the items {history}, infer the {field} of what the user takes next. Answer: ",
    "{history} have been bought in this order. The {field} of the next purchase reads: ",
]

FUSION_TO_ITEM = [
    "The user bought these products, oldest first: {history}. Which item comes next? Answer: ",
    "Titles of past purchases: {history}. Name the next item. Answer: ",
    "A customer owns the following: {history}. Recommend an item from the catalogue. Answer: ",
    "Going by these product names, in order of time, predict the item that follows: {history}. Answer: ",
    "Earlier orders were {history}. The identifier of the next order is: ",
    "Someone bought {history}, one after the other. What would they buy now? Answer: ",
    "Shopping history by name: {history}. The next item is: ",
    "Which item should be suggested to a user who has just bought {history}? Answer: ",
]

ITEMSEARCH = [
    "A user searches for: {query}. Which item fits? Answer: ",
    'The search box says "{query}". Return the best item. Answer: ',
    "I am looking for this: {query}. Please suggest an item. Answer: ",
    "Find the item that answers the wish: {query}. Answer: ",
    "The user bought {history} and now asks for: {query}. Which item should be shown? Answer: ",
    "Past purchases: {history}. Current request: {query}. The right item is: ",
    "With {history} in the order history, a customer types {query}. Pick the item that suits. Answer: ",
    "Someone who owns {history} wants the following: {query}. Recommend one item. Answer: ",
]

PREFERENCEOBTAIN = [
    "The user bought {history}, oldest first. What does the user like? Answer: ",
    "Sum up the taste behind these purchases: {history}. Answer: ",
    "Look at the orders {history}. Describe the preferences of this customer. Answer: ",
    "What do the items {history} say about the person who bought them? Answer: ",
    "From the shopping history {history}, derive what the user cares about. Answer: ",
    "A customer has chosen {history}. The customer's preferences are: ",
    "Write a short profile of a user with these purchases: {history}. Answer: ",
    "Which kinds of products does someone prefer who has bought {history}? Answer: ",
]
