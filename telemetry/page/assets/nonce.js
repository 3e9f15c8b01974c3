// Plotly adds style elements to the page, which its Content-Security-Policy allows only with the
// nonce of this answer. Each style element made by a script gets that nonce; scripts do not.
"use strict";
(() => {
  const nonce = document.currentScript.nonce;
  const create = Document.prototype.createElement;
  Document.prototype.createElement = function (name, options) {
    const made = create.call(this, name, options);
    if (String(name).toLowerCase() === "style") made.nonce = nonce;
    return made;
  };
})();
