"""What membership is good for next: records that turn the model against a person."""
