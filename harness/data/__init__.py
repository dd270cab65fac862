"""From rows in any format to batches: row -> encoded sample -> collated batch."""
