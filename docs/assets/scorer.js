/* The order of search results: as Sphinx has it, but what is called as the reader asks comes first, then what is called
   as part of the question ("which optimizer should I use"), and last what is for those who work on gradtx. */
const bare = (text) => ` ${text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim()} `;
const project = /^(changelog|contributing|architecture|tests|benchmarks)$/;

var Scorer = {
  score: ([docname, title, anchor, description, score]) => {
    const asked = bare(new URLSearchParams(location.search).get("q") ?? "");
    const named = bare(title) === asked ? 100 : asked.includes(bare(title)) ? 30 : 0;
    return score + named - (project.test(docname) ? 20 : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
