"""What an unlearned model shows under attack: quantised, probed, or taught again."""
