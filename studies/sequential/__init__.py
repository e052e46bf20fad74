"""Sequential unlearning: rounds of requests, each on the model that the last one left."""
