"""One file per thing that is learnt."""
