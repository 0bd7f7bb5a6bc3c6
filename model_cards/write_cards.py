"""Writes the cards anew, from the table in `ssl_hub.hub.models`: python model_cards/write_cards.py"""

from pathlib import Path

from ssl_hub import list_models
from ssl_hub.hub.published_card import build_published_card
from ssl_hub.training.recipes import load_recipe

if __name__ == "__main__":
    for model in list_models():
        card = build_published_card(model, load_recipe(model.recipe).build_config())
        card.save(Path(__file__).parents[1] / model.card)
