/* The order of search results: as Sphinx has it, but what is called as the reader asks comes first. */
const bare = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();

var Scorer = {
  score: ([docname, title, anchor, description, score]) =>
    score + (bare(title) === bare(new URLSearchParams(location.search).get("q") ?? "") ? 100 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
