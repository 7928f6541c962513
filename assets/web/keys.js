// Keys of the whole studio: run, pages, and the list of them all. But for the first none acts while one types.
() => {
  const list = () => document.querySelector('#keys');
  const typing = (at) => at.closest('input, textarea, select, [contenteditable="true"]') !== null;
  document.addEventListener('click', (event) => {
    if (event.target.closest('.masthead .keys')) list().showModal();
    else if (event.target === list()) list().close(); // beside it
  });
  document.addEventListener('keydown', (event) => {
    const commanding = event.ctrlKey || event.metaKey;
    if (commanding && event.key === 'Enter') {
      const go = [...document.querySelectorAll('button.go')].find((button) => button.offsetParent);
      if (go) { event.preventDefault(); go.click(); }
    } else if (commanding || event.altKey || typing(event.target)) {
      return;
    } else if (event.key === '?') {
      list().open ? list().close() : list().showModal();
    } else if (/^[1-9]$/.test(event.key) && !list().open) {
      document.querySelectorAll('#pages > .tab-wrapper [role=tab]')[event.key - 1]?.click();
    }
  });
}
