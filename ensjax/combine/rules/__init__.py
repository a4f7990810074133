"""Rules that are not fitted: averages, pools, votes, and weights of members."""
