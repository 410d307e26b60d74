"""What follows from a recipe by arithmetic: parameters, FLOPs, checkpoint sizes, time, energy. No torch."""
