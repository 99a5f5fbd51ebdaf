/** Whether a row's claim holds; one that was not measured claims nothing. A ratio that is no number does not hold. */
export const holds = ({ ratio, floor }) => ratio === undefined || ratio >= floor;

/** The exit status of a run. */
export const statusOf = (results) => (results.every(holds) ? 0 : 1);
