"""Mutation testing of the referee: semantic faults put into a right graph, and what catches them."""
