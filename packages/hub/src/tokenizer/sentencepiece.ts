/**
 * Merges, in order, that give what SentencePiece gives with scores: of all neighbors that join into a token, the one with
 * the best score joins first, the leftmost of equals. Every way to split a token into two tokens is one merge.
 */
export function mergesOfScores(tokens: readonly string[], scores: readonly number[], joins: (id: number) => boolean): [string, string][] {
  const ids = new Map(tokens.map((text, id) => [text, id]));
  const merges: { left: string; right: string; score: number; order: [number, number] }[] = [];
  tokens.forEach((text, id) => {
    if (!joins(id)) return;
    const characters = Array.from(text);
    let left = '';
    for (let cut = 1; cut < characters.length; cut++) {
      left += characters[cut - 1]!;
      const right = text.slice(left.length);
      const [l, r] = [ids.get(left), ids.get(right)];
      if (l !== undefined && r !== undefined) merges.push({ left, right, score: scores[id]!, order: [l, r] });
    }
  });
  merges.sort((a, b) => b.score - a.score || a.order[0] - b.order[0] || a.order[1] - b.order[1]);
  return merges.map(({ left, right }) => [left, right]);
}
