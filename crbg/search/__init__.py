"""The parts of a search: penalties, density controllers, objectives and scores."""
