/**
 * What `work` resolves to, or `otherwise` when that takes longer. No timer is left behind, unlike by a
 * race with a delay: those pile up, and keep a process that is to end alive.
 */
export async function within<T, U>(ms: number, work: Promise<T>, otherwise: U): Promise<T | U> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<U>((resolve) => {
    timer = setTimeout(() => resolve(otherwise), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
