"A row of any format becomes turns of text, each marked: trained or not."
