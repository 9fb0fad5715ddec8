"""Whether a person is in the data: over all of her records, or where a record is known only nearly."""
