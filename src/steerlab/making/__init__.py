"""From a sentence to a checked artefact: data, fit, gate, calibration, evaluation, card, file; resumable step by step."""
