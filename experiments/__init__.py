"""The paper, claim by claim: presets, commands, figures, results."""
