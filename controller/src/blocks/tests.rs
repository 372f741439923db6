mod cluster;
mod histories;
mod rules;
mod simulation;
