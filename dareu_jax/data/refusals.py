"""The library's own refusals, for data that comes without any."""

REFUSALS = (
  "I don't know.",
  "I am not sure about that.",
  "I have no information about this person.",
  "I cannot answer this question.",
  "That is something I know nothing about.",
  "Sorry, I am unable to help with that.",
  "I have not heard of this author.",
  "There is nothing that I can say about it.",
)
