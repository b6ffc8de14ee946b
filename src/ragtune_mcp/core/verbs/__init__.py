"""The verbs of the tool contract, grouped by the stage they drive. `RagTune` inherits them all."""
