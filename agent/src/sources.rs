//! Where the agent's mappings come from. A source turns what it reads into changes of objects (`ConfigMaps`); it
//! decides nothing about their meaning.

pub mod directory;
