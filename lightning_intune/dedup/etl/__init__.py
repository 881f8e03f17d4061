"""Sessions on disk: made up (`synth`), measured (`analyze`), clustered (`cluster`)."""
