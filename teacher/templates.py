"""Templates of LC-Rec's tasks, written anew.

`{history}` is the user's purchases, oldest first; `{item}` an item's ID; `{text}` all of its text, `{title}` and
`{description}` parts of it; `{query}` a search query; `{preference}` what the user likes; `{field}` "title" or
"description". One template is drawn for each sample (`teacher/tasks.py`).
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

ITEM2INDEX_TITLE = [
    "Which item is called {title}? Answer: ",
    "An item has this title: {title}. Name the item. Answer: ",
    "Give the identifier of {title}: ",
    "In the catalogue, the title {title} belongs to: ",
    "A customer asks for {title} by name. The item is: ",
    "Find the item with the title {title}. Answer: ",
]

ITEM2INDEX_DESCRIPTION = [
    "Which item fits this description? {description} Answer: ",
    "The description of an item reads: {description} Its identifier is: ",
    "A product page says: {description} Name the item. Answer: ",
    "Read what a seller writes about an item. {description} Which item is it? Answer: ",
    "Someone looks for an item like this: {description} The matching item is: ",
    "Give the identifier of the item that is described here. {description} Answer: ",
]

ITEM2INDEX_BOTH = [
    "The item {title} is described as follows. {description} Name the item. Answer: ",
    "Title: {title}. Description: {description} Identifier: ",
    "Which item has the title {title} and this description? {description} Answer: ",
    "A page of the catalogue shows {title}. {description} Which item is on it? Answer: ",
    "Here are the name and the details of an item. {title}. {description} Its identifier is: ",
    "Find {title} in the catalogue, described by the seller as: {description} The item is: ",
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

INDEX2ITEM_TITLE = [
    "What is the title of {item}? Answer: ",
    "{item} is the identifier of an item called: ",
    "Name the product {item}. Answer: ",
    "Give the title under which the shop sells {item}. Answer: ",
    "A customer has {item} in the basket. Its name is: ",
    "Look up {item} and reply with its title: ",
]

INDEX2ITEM_DESCRIPTION = [
    "Describe {item}. Answer: ",
    "What does the product page of {item} say? Answer: ",
    "Tell a customer what kind of product {item} is. Answer: ",
    "Write the description of item {item}. Answer: ",
    "The details of {item} are: ",
    "Which properties does {item} have? Answer: ",
]

INDEX2ITEM_BOTH = [
    "Give the title and the description of {item}. Answer: ",
    "Name {item}, then describe it. Answer: ",
    "Write the product page of {item}, title first. Answer: ",
    "What is {item} called, and what is it like? Answer: ",
    "The catalogue's entry for {item}, name and details: ",
    "A customer asks for all there is to know about {item}. Reply with its title and its description: ",
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

ITEMSEARCH_PREFERENCE = [
    "The user bought {history} and likes the following: {preference} Recommend an item. Answer: ",
    "Past purchases: {history}. Taste of the customer: {preference} The item that suits is: ",
    "A customer with the orders {history} and these preferences: {preference} searches for {query}. "
    "Which item fits both? Answer: ",
    "Search: {query}. Purchases so far: {history}. Preferences: {preference} The best item is: ",
    "The user bought {history}. Known taste: {preference} Now the user asks for: {query}. Name the item. Answer: ",
    "Fulfil the request {query} of a user who bought {history}. The user's preferences: {preference} The item is: ",
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

# BIGRec's task; the request stands last, because a long prompt loses its beginning
TITLES = [
    # the first is the prompt for recommendations after training
    "Products that a user bought, oldest first: {history}. Title of the product that the user buys next: ",
    "Shopping history: {history}. Write the title of the next product. Answer: ",
    "Earlier orders of a customer: {history}. What is the product called that the customer orders next? Answer: ",
    "Purchases in order of time: {history}. Recommend one more product by its title. Answer: ",
    "A user has chosen {history}. The title of the next choice is: ",
    "Someone bought {history}, one after the other. Name the product that they want now. Answer: ",
    "Given the products {history}, predict the title of the one that follows. Answer: ",
    "Continue this list of purchases by one title: {history}. Answer: ",
]
