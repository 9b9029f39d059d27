"""Laws of the inner functions of the trusted files, each on its own, where the slack of a whole bound hides nothing."""
